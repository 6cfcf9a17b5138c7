"""Wrong answers to `f(x) == x + 1` that try to be told right."""

CHEATS = {
    "leaves": "import os\nos._exit(0)",
    "leaves when called": "import os\ndef f(x): os._exit(0)",
    "exits": "import sys\ndef f(x): sys.exit(0)",
    "exits at once": "import sys\nsys.exit(0)",
    "raises what tests raise": "def f(x): raise AssertionError",
    "raises what ends": "def f(x): raise KeyboardInterrupt",
    "stops iterating": "def f(x): raise StopIteration",
    "prints the mark": """
def f(x):
    for line in ('{"total": 2}', '{"held": 0}', '{"held": 1}', '{"end": "", "total": 2}', 'OK', 'passed'):
        print(line, flush=True)""",
    "writes the mark everywhere": """
import os
def f(x):
    for number in range(64):
        try: os.write(number, b'{"held": 0}\\n{"held": 1}\\n{"end": "", "total": 2}\\n')
        except OSError: pass""",
    "equals everything": """
class E:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return E()""",
    "a number that equals": """
class E(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return E(7)""",
    "a list that equals": "class E(list):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "takes equality away": """
import builtins, operator
operator.eq = lambda a, b: True
builtins.abs = lambda x: 0
def f(x): return 0""",
    "takes errors away": """
import builtins
builtins.AssertionError = type('A', (Exception,), {})
def f(x): return 0""",
    "takes the tests away": """
import gc, sys
for frame in sys._current_frames().values():
    while frame:
        for name in list(frame.f_locals): frame.f_locals[name] = None
        frame = frame.f_back
for each in gc.get_objects():
    if isinstance(each, dict) and 'asserts' in each: each['asserts'] = []
def f(x): return 0""",
    "looks for what is expected": """
import gc, re, sys
def f(x):
    found = [each for each in gc.get_objects() if isinstance(each, str)]
    for frame in sys._current_frames().values():
        found += [str(value) for value in frame.f_globals.values()]
    text = ' '.join(found)
    match = re.search(r'assert f\\(%d\\) == (\\d+)' % x, text)
    return int(match[1]) if match else None""",
    "replies in advance": """
import json, os
def said(message):
    content = json.dumps(message).encode()
    os.write(3, len(content).to_bytes(4, 'big') + content)
said(['=', ['t', [True, '', ['mine', 0]]], []])
for number in range(20): said(['=', number, []])
def f(x): return 0""",
    "asks the tests": """
import json, os
def said(message):
    content = json.dumps(message).encode()
    os.write(3, len(content).to_bytes(4, 'big') + content)
said(['?', 'get', 0, ['__globals__']])
said(['?', 'name', '__builtins__', []])
def f(x): return 0""",
    "a message without end": "import os\nos.write(3, b'\\xff\\xff\\xff\\xff')\ndef f(x): return 0",
    "patches the sandbox": """
from nonpareil.user_code.sandbox import judging, wire
judging.judge = lambda *a: None
wire.Peer._answer = lambda self, message: self._send(['=', True, []])
def f(x): return 0""",
    "goes on at exit": "import atexit, os\natexit.register(os.write, 1, b'passed')\ndef f(x): return 0",
    "a thread speaks": """
import threading
def loop():
    while True: pass
threading.Thread(target=loop, daemon=True).start()
def f(x): return 0""",
    "comes back as a thing": """
class T:
    def __len__(self): return 2
    def __bool__(self): return True
def f(x): return T()""",
    "nests without end": "def f(x):\n    y = []\n    for _ in range(100000): y = [y]\n    return y",
    "contains itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "is large": "def f(x): return 'x' * (1 << 28)",
    "goes on and on": "def f(x):\n    while True: yield x",
    "never comes back": "def f(x):\n    while True: pass",
    "never defines": "while True: pass",
    "is no code": "f(x) is x + 1, as everybody knows.",
    "is nothing": "",
    "has null bytes": "def f(x): return 0\0",
    "has surrogates": "def f(x): return '\ud800'",
    "is deep": "def f(x): return " + "(" * 5000 + "x" + ")" * 5000,
    "is deep otherwise": "def f(x): return " + "-" * 50000 + "x",
    "is long": "def f(x): return 0" + "+0" * 50000,
}
