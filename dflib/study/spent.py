"""What an unfinished run has made, and how long it took, over all sessions that it took."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.paths import regular, write_text
from dflib.study import records
from dflib.study.records import TIMINGS, cpu


def clocks() -> tuple[float, float]:
    """Wall clock, and CPU time of this process with all its threads, in seconds."""
    return time.perf_counter(), time.process_time()


@dataclass
class Spent:
    """Noted in `file` after each epoch and each step: an interruption loses none of it."""

    file: Path
    made: dict = field(default_factory=dict)  # step: (timing, seconds, CPU seconds, file's stamp)
    total: tuple[float, float] = (0.0, 0.0)  # seconds and CPU seconds of earlier sessions
    threads: list = field(default_factory=list)
    began: tuple[float, float] = field(default_factory=clocks)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):  # none, or cut by a power cut
            found = json.loads(regular(self.file).read_text())
            self.made, self.total, self.threads = (found[k] for k in ("made", "total", "threads"))

    def all(self) -> list[float]:
        """Seconds and CPU seconds of all sessions."""
        times = zip(self.total, clocks(), self.began, strict=True)
        return [before + now - then for before, now, then in times]

    def steps(self) -> list[float]:
        """Seconds and CPU seconds of all steps."""
        return [sum(step[i] for step in self.made.values()) for i in (1, 2)]

    def timings(self) -> dict[str, float]:
        """`timings` of a result: of each kind and in total, CPU seconds beside seconds."""
        found = dict.fromkeys((*TIMINGS, *map(cpu, TIMINGS)), 0.0)
        for kind, wall, busy, _ in self.made.values():
            found[kind] += wall
            found[cpu(kind)] += busy
        wall, busy = self.all()
        return found | {"total_s": wall, "total_cpu_s": busy}

    def keep(self, step: str = "", timing: str = "", took=(), made: Path | None = None) -> None:
        """Note a step, what it took, and the file that it made; and the time of all sessions."""
        import torch

        if step:
            self.made[step] = (timing, *map(float, took), records.stamp(made) if made else "")
        self.threads = sorted({*self.threads, torch.get_num_threads()})
        parts = {"made": self.made, "total": self.all(), "threads": self.threads}
        write_text(self.file, json.dumps(parts))

    def has(self, file: Path) -> bool:
        """Whether a step made the file, and it is as it was written."""
        return self.made.get(file.name, [""])[-1] == records.stamp(file) != ""
