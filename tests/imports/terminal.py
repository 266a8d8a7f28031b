"""Runs a command whose standard error is a terminal: terminal.py COMMAND ARGUMENT…

Prints what came as JSON: the exit status, standard output, and all that was written to the terminal.
"""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios

ours, theirs = os.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=theirs)
os.close(theirs)
written = b""
while True:
    try:
        part = os.read(ours, 65536)
    except OSError:  # EIO: the last one who had it open is gone.
        break
    if not part:
        break
    written += part
output = child.stdout.read().decode()
print(json.dumps({"code": child.wait(), "stdout": output, "terminal": written.decode()}))
