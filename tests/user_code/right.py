"""Right solutions of `f`, each with tests that it passes: what a solution and its tests may hand to each other."""

RIGHT = {
    "in place": (
        "def f(x): x.sort()",
        [
            """
a=[3,1]
f(a)
assert a==[1,3]"""
        ],
    ),
    "nested in place": (
        """
def f(m):
    m[0][0]=9""",
        [
            """
a=[[1],[2]]
row=a[0]
f(a)
assert a==[[9],[2]] and row==[9]"""
        ],
    ),
    "callback": ("def f(g,x): return g(g(x))", ["assert f(lambda v: v*2, 3)==12", "assert f(abs,-3)==3"]),
    "raises": (
        """
def f(x):
    raise ValueError('no')""",
        [
            """
try:
    f(1)
    assert False
except ValueError as e:
    assert str(e)=='no'"""
        ],
    ),
    "own error": (
        """
class E(KeyError): pass
def f(x): raise E('k')""",
        [
            """
try:
    f(1)
    assert False
except KeyError: pass"""
        ],
    ),
    "class": (
        """
class Pair:
    def __init__(s,a,b): s.a=a; s.b=b
def f(ps,n): return max(p.b for p in ps[:n])""",
        ["assert f([Pair(1,2),Pair(3,9)],2)==9", "assert Pair(1,2).a==1"],
    ),
    "method": (
        """
class Solution:
    def two(self,x): return x*2""",
        ["assert Solution().two(3)==6"],
    ),
    "iterator": (
        """
def f(n):
    yield from range(n)""",
        [
            "assert list(f(3))==[0,1,2]",
            """
it=f(2)
assert next(it)==0""",
        ],
    ),
    "map": ("def f(n): return map(str,range(n))", ["assert list(f(2))==['0','1']"]),
    "types": (
        "def f(x): return x",
        [
            r"""
import math
for v in (1, -2**100, 1.5, float('inf'), 'x\ud800', b'a', (1, (2,)), {1, 2}, frozenset([3]), {(1, 2): [3]}):
    assert f(v) == v and type(f(v)) is type(v)
for v in (None, True, 2j, range(3), bytearray(b'x'), [[], {}]):
    assert f(v) == v and type(f(v)) is type(v)
assert math.isnan(f(float('nan')))"""
        ],
    ),
    "collections": (
        """
from collections import *
from fractions import Fraction
from decimal import Decimal
import datetime
P = namedtuple('P', 'a b')
def f(x):
    plain = [P(1, 2), defaultdict(list, {1: [2]}), datetime.date(2020, 1, 2)]
    return [Counter('aab'), OrderedDict(a=1), deque([1]), Fraction(1, 3), Decimal('1.1'), *plain]""",
        [
            """
from collections import *
from fractions import *
from decimal import *
import datetime
plain = [(1, 2), {1: [2]}, datetime.date(2020, 1, 2)]
assert f(1) == [Counter('aab'), OrderedDict(a=1), deque([1]), Fraction(1, 3), Decimal('1.1'), *plain]"""
        ],
    ),
    "sum": ("def sum(a,b): return a+b if a else 6", ["assert sum(10,15)==25"]),
    "dataclass": (
        """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class A:
    x: int
def f(x): return A(x)""",
        ["assert f(1)==f(1)", "assert f(1)!=f(2)", "assert f(3).x==3"],
    ),
    "usage": (
        """
def f(x): return x
n=int(input())
assert f(1)==2
f(undefined)
import sys
sys.exit(f(1))""",
        ["assert f(1)==1"],
    ),
    "main": (
        """
def f(x): return x
if __name__=='__main__':
    while True: pass""",
        ["assert f(1)==1"],
    ),
    "recursion": (
        """
import sys
sys.setrecursionlimit(20000)
def f(x): return 0 if x==0 else 1+f(x-1)""",
        ["assert f(9000)==9000"],
    ),
    "threads": (
        """
from concurrent.futures import ThreadPoolExecutor as T
def f(x):
    with T(4) as t:
        return list(t.map(lambda v:v+1,x))""",
        ["assert f([1,2])==[2,3]"],
    ),
    "asyncio": (
        """
import asyncio
async def g(x): return x+1
def f(x): return asyncio.run(g(x))""",
        ["assert f(1)==2"],
    ),
    "tempfile": (
        """
import tempfile
def f(x):
    with tempfile.TemporaryFile('w+') as t:
        t.write(x)
        t.seek(0)
        return t.read()""",
        ["assert f('a')=='a'"],
    ),
    "random": (
        """
import random
def f(x): return random.random()""",
        ["assert f(1)!=f(1)"],
    ),
    "prints": (
        """
def f(x):
    for i in range(20000): print('x'*100)
    return x""",
        ["assert f(1)==1"],
    ),
    "big": ("def f(x): return list(range(200000))", ["assert f(1)==list(range(200000))"]),
    "lru": (
        """
from functools import lru_cache, reduce
@lru_cache(None)
def f(x): return x""",
        ["assert f(1)==1"],
    ),
}
WITH_NUMPY = {
    "numpy": (
        """
import numpy as np
def f(x): return np.float64(x)+np.int64(1)""",
        ["assert f(1)==2", "assert abs(f(1)-2)<1e-9"],
    ),
    "numpy int": (
        """
import numpy as np
def f(x): return np.int64(1)""",
        ["assert f(1)==1"],
    ),
    "numpy array": (
        """
import numpy as np
def f(x): return np.arange(x)""",
        [
            """
import numpy as np
assert np.allclose(f(3),[0,1,2])""",
            "assert f(3).tolist()==[0,1,2]",
        ],
    ),
}
