"""Programs that mean harm. `{mark}` is a file outside, which must stay as it is and unread; `{home}` a folder."""

PROGRAMS = {
    "never ends": "while True: pass",
    "sleeps": "import time; time.sleep(1e6)",
    "ignores signals": """
import signal
for number in signal.valid_signals():
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
while True: pass""",
    "never ends in C": "9 ** 9 ** 9",
    "deep recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "deep recursion in C": """
import sys
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6): x = [x]
repr(x)""",
    "eats memory": "x = [bytearray(1 << 20) for _ in range(1 << 20)]",
    "eats memory by threads": """
import threading, time
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(1e6,)).start()""",
    "memory beside its own": "import os\nos.ftruncate(os.memfd_create('x'), 1 << 40)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "forks twice and stays": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1e6)
    os._exit(0)""",
    "a shell": "import subprocess; subprocess.run(['/bin/sh', '-c', 'sleep 1000 &'], check=True)",
    "vfork by hand": "import ctypes, os\nif ctypes.CDLL(None).vfork() < 0: raise OSError('no')",
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
    "executes": "import os; os.execv('/bin/sh', ['sh', '-c', 'sleep 1000'])",
    "kills all": "import os; os.kill(-1, 9)",
    "kills its group": "import os; os.kill(0, 9)",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "traces its parent": """
import ctypes, os
if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise OSError('no')""",
    "connects": "import socket; socket.create_connection(('127.0.0.1', {port}), 5)",
    "listens": "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "a datagram": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
    "reads the users": "print(open('/etc/passwd').read())",
    "reads home": "import os; print(os.listdir('{home}'))",
    "reads a secret": "print(open('{mark}').read())",
    "reads processes": "import os; print(os.listdir('/proc'))",
    "follows a link": "import os; os.symlink('{mark}', 'x'); print(open('x').read())",
    "climbs": "print(open('../../../../../../../{mark}').read())",
    "writes outside": "open('{mark}', 'w').write('mine')",
    "deletes outside": "import os; os.remove('{mark}')",
    "renames outside": "import os; open('x', 'w').close(); os.rename('x', '{mark}')",
    "truncates outside": "import os; os.truncate('{mark}', 0)",
    "changes rights outside": "import os; os.chmod('{mark}', 0o777)",
    "spoils Python": "import json; open(json.__file__, 'a').write('x')",
    "fills the disk": "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "fills the disk with files": """
n = 0
while True:
    n += 1
    open(str(n), 'wb').write(bytes(1 << 20))""",
    "fills its output": "import os\nwhile True: os.write(1, bytes(1 << 16))",
    "fills its errors": "import os\nwhile True: os.write(2, bytes(1 << 16))",
    "closes all and goes on": "import os, time\nos.closerange(0, 64)\ntime.sleep(1e6)",
    "limits lifted": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
    "outlives its server": "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) < 0: raise OSError('no')",
    "a name space of its own": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError('no')",
    "handles of files": "import ctypes\nif ctypes.CDLL(None).syscall(304, -100, None, 0) < 0: raise OSError('no')",
    "an io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 8, bytes(128)) < 0: raise OSError('no')",
    "goes on at exit": "import atexit\n@atexit.register\ndef f():\n    while True: pass",
    "a thread goes on": "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()",
}
