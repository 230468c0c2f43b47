# For cross builds (the toolchain file points here): fmt by its headers alone, since Debian's library is the host's.
add_library(fmt::fmt INTERFACE IMPORTED)
target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
