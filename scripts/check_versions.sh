#!/bin/sh
# Fails unless CMakeLists.txt, pagemill.h and CHANGELOG.md state the same version.
set -eu
cmake=$(sed -n 's/^project(pagemill VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
header=$(sed -n 's/^#define PM_VERSION_[A-Z]* //p' include/pagemill/pagemill.h | paste -sd .)
changelog=$(sed -n 's/^## \([0-9.]*\).*/\1/p' CHANGELOG.md | head -n 1)
echo "CMakeLists.txt $cmake, pagemill.h $header, CHANGELOG.md $changelog"
[ -n "$cmake" ] && [ "$cmake" = "$header" ] && [ "$cmake" = "$changelog" ]
