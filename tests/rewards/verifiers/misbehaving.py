"""A verifier that does what its completion says: its process imports it from here."""

import os
from dataclasses import dataclass

from nonpareil.rewards.verifiers import CannotTell, LimitedVerifier, Row
from nonpareil.settings import option


@dataclass(eq=False)
class Obedient(LimitedVerifier):
    name = "obedient"
    answer_column: str = option("answer", "Its column.")

    def judge(self, row: Row) -> float:
        if row.completion == "loop":
            while True:
                pass
        if row.completion == "compute":
            9**9**9
        if row.completion == "die":
            os.kill(os.getpid(), 9)
        if row.completion == "allocate":
            bytearray(5 * 1024**3)
        if row.completion == "unknown":
            raise CannotTell("nobody knows")
        return float(row.completion)
