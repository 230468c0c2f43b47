"""python ask.py URL [< BODY]: prints the answer to a request, POST of JSON if there is a body."""

import sys
import urllib.request

request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read() or None, {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=300) as response:
    sys.stdout.buffer.write(response.read())
