"""`make bench`: speed as ratios inside one run; writes outputs/bench.json, prints a table.

`python -m tests.bench NAME …` (or `make bench ARGS="NAME …"`) runs only some of them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data as photos
from torchvision import datasets
from torchvision.transforms import v2

from data_prep import cache, demo, folder, manifest
from data_prep.errors import choose, command_line
from data_prep.integrity import inspect_file
from dflib import backbones, data, distill, measure, metrics, models, prune, train
from dflib.edge import elsewhere
from dflib.study import engine, records, runs

Record = dict  # name, value, unit, bar, holds, conditions


def record(name: str, value: float, unit: str, bar: str, conditions: str) -> Record:
    """bar: "< 5", ">= 2" or "": whether the value holds it."""
    sign, _, limit = bar.partition(" ")
    holds = (value < float(limit)) == (sign == "<") if limit else None
    known = {"name": name, "value": round(value, 3), "unit": unit, "bar": bar}
    return known | {"holds": holds, "conditions": conditions}


def clocked(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def seconds(step: Callable[[], object], *, repeat: int = 5) -> float:
    """Median seconds of a call, after one call to warm up."""
    step()
    return float(np.median([clocked(step) for _ in range(repeat)]))


def in_turns(*steps: Callable[[], object], rounds: int = 5) -> list[float]:
    """Median seconds of each of several calls, measured in turns: a moment's disturbance hits all
    alike."""
    times = [[seconds(step, repeat=3) for step in steps] for _ in range(rounds)]
    return np.median(times, axis=0).tolist()


@contextmanager
def roots() -> Iterator[Path]:
    """Fresh data and outputs roots; the environment is as before at their end."""
    with tempfile.TemporaryDirectory() as base, patch.dict(os.environ):
        os.environ |= {"DFLIB_DATA": f"{base}/data", "DFLIB_OUTPUTS": f"{base}/outputs"}
        yield Path(base)


def import_time() -> Iterator[Record]:
    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    about = "median of 5 fresh processes, an empty one's time taken off"
    yield record("import dflib", run("import dflib") - run("pass"), "s", "< 0.3", about)


def batches() -> Iterator[Record]:
    """Batches of one epoch: our memory map against ImageFolder + Pillow + resize, one process each,
    both as uint8 tensors."""
    with roots() as root:
        for part, n in (("train", 400), ("val", 8), ("test", 8)):
            _jpegs(root / "images" / part, n, side=256)
        folder.prepare(root / "images", name="bench")
        for size in (64, 224):
            transform = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), antialias=True)])
            files = datasets.ImageFolder(root / "images" / "train", transform)
            theirs = torch.utils.data.DataLoader(files, batch_size=64, shuffle=True)
            order, ours = torch.Generator().manual_seed(0), data.open("bench", size=size).train
            slow, fast = in_turns(
                lambda loader=theirs: list(loader),
                lambda part=ours, order=order: list(part.batches(64, shuffle=order)),
            )
            about = f"400 JPEGs of 256 px, q85, shuffled batches of 64: {400 / fast:,.0f} against "
            about += f"{400 / slow:,.0f} images/s of torchvision ImageFolder, one process each"
            yield record(f"batches, {size} px", slow / fast, "x", ">= 50", about)


def training_step() -> Iterator[Record]:
    """One optimiser step of BL at 128 px: ours (mixed precision, channels_last) against the plain
    fp32 NCHW loop."""
    device = train.best_device()
    images = torch.randint(0, 256, (32, 128, 128, 3), dtype=torch.uint8, device=device)
    images = images.permute(0, 3, 1, 2)
    labels = torch.arange(32, device=device) % 2

    def stepper(*, channels_last: bool, amp: bool) -> Callable[[], None]:
        model = models.Detector(models.architecture("BL", size=128)).to(device)
        model = model.to(memory_format=torch.channels_last) if channels_last else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        x = train.pixels(images) if channels_last else images.contiguous().float().div(255)

        def step() -> None:
            with train._autocast(device, amp):
                loss = F.cross_entropy(model(x).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return step

    plain = seconds(stepper(channels_last=False, amp=False))
    layout = seconds(stepper(channels_last=True, amp=False))
    ours = seconds(stepper(channels_last=True, amp=True))
    mixed = str(train.precision(device)).removeprefix("torch.")
    bar = ">= 1.8" if mixed == "bfloat16" else ""
    about = f"batch 32, {mixed} + channels_last {1e3 * ours:.0f} ms against fp32 NCHW "
    about += f"{1e3 * plain:.0f} ms ({layout / ours:.2f}x against fp32 channels_last), "
    about += f"{torch.get_num_threads()} threads"
    yield record("training step of BL, 128 px", plain / ours, "x", bar, about)


def cached_teacher() -> Iterator[Record]:
    """A step of distillation at 224 px: the teacher's answers kept (`views`), or asked for anew."""
    device, of = train.best_device(), "timm/tf_efficientnet_lite0"
    teacher = models.Detector(models.architecture("BL", backbone=of))
    student = models.Detector(models.student(0.87, backbone=of)).to(device)
    student = student.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    loss, rows = distill.Distillation(teacher), torch.arange(32)
    images = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8, device=device)
    labels = torch.arange(32, device=device) % 2

    def step(place: train.Place | None) -> None:
        x = train.pixels(images)
        with train._autocast(device, True):
            value = loss(student(x).float(), labels, x, place)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    online, kept = in_turns(partial(step, None), partial(step, (0, rows, 32)))
    yield record(
        "a teacher whose answers are kept, 224 px",
        online / kept,
        "x",
        ">= 3",
        f"a step of 32 images: {1e3 * kept:.0f} ms against {1e3 * online:.0f} ms; teacher of 0.38 "
        f"GMACs (EfficientNet-Lite0), student of 0.18 (S90), {torch.get_num_threads()} threads",
    )


def compressed() -> Iterator[Record]:
    """BL at 224 px against the same with masks, with 90 % structured pruning, and with int8 on top:
    one thread, each file in a fresh process."""
    from dflib import export, lowrank, quantize

    rng = np.random.default_rng(0)
    part = data.Part(
        rng.integers(0, 256, (32, 224, 224, 3), dtype=np.uint8),
        pd.DataFrame({"row": range(32), "label": [0, 1] * 16}),
    )
    with train.seeded(0), tempfile.TemporaryDirectory() as base:
        file = lambda name: Path(base) / f"{name}.onnx"
        full, masked = (models.Detector(models.architecture("BL")).eval() for _ in range(2))
        prune.apply_masks(masked, prune.magnitude_masks(masked, rate=0.9))
        shapes = {"BL": full, "CPF": masked}
        shapes["CPF-S"] = prune.structured(full, rate=0.9, round_to=16).eval()
        shapes["LRF"] = lowrank.factorise(full, lowrank.choose_ranks(full, rate=0.9))
        files = {name: export.to_onnx(model, file(name)) for name, model in shapes.items()}
        static = partial(quantize.static_int8, part=part, images=32)
        files["CPKDQ"] = static(files["CPF-S"], file("CPKDQ"))
        files["CQ"] = quantize.dynamic_linear(files["BL"], file("CQ"))
        files["CQ-S"] = static(files["BL"], file("CQ-S"))
        timed = zip(files, measure.profiles([*files.values()], runs=50), strict=True)
        ms = {name: found["latency_ms"]["p50"] for name, found in timed}
        size = {name: path.stat().st_size for name, path in files.items()}
    about = "224 px, batch 1, one pinned thread, untrained weights, median of 5 processes in turns"
    faster = {"CPF": "", "CPF-S": ">= 8", "CPKDQ": ">= 20", "LRF": "", "CQ": "", "CQ-S": ">= 2.5"}
    for name, bar in faster.items():
        old, new = ms["BL"], ms[name]
        told = f"{about}: {old:.1f} against {new:.1f} ms"
        yield record(f"{name} against BL, ONNX Runtime", old / new, "x faster", bar, told)
    smaller = {"CPF": "", "CPF-S": ">= 9.5", "CPKDQ": ">= 33", "LRF": ">= 9.5", "CQ-S": ">= 3.5"}
    for name, bar in smaller.items():
        old, new = size["BL"] / 1e6, size[name] / 1e6
        told = f"deployed ONNX files: {old:.2f} against {new:.3f} MB"
        yield record(f"file of {name} against BL", old / new, "x smaller", bar, told)


def study() -> Iterator[Record]:
    """`make study` from nothing but the installed packages: demo data, demo grid, report; then the
    same command again."""
    with roots():
        command = [sys.executable, "-m", "dflib", "study", "--preset", "demo"]
        run = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        first, again = clocked(run), clocked(run)
        trained = runs.results()[[*map(records.cpu, records.TIMINGS)]].to_numpy().sum()
    about = "demo data, demo grid and report; set-up of .venv excluded"
    yield record("make study (demo)", first / 60, "min", "< 4", about)
    about = "CPU seconds of trainings and compressions, of those that the cores had"
    yield record("its share that trains", trained / first / manifest.cores(), "", "", about)
    about = "every run found finished; the report written anew"
    yield record("make study again", again, "s", "", about)


def setup_again() -> Iterator[Record]:
    """A second `make` finds the set-up done."""
    value = seconds(lambda: subprocess.run(["make", "--silent", "setup"], check=True), repeat=3)
    yield record("second make setup", value, "s", "< 2", "nothing to install")


def _jpegs(root: Path, n: int, side: int = 128, *, nested: bool = False) -> Path:
    """n photographs' patches in real/ and fake/a/, as JPEG; nested: as ForenSynths has them."""
    rng, photo = np.random.default_rng(0), photos.astronaut()
    for i in range(n):
        place = f"gan{i // 2 % 10}/class{i // 20 % 20}/{('0_real', '1_fake')[i % 2]}"
        path = root / (place if nested else ("real", "fake/a")[i % 2]) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        top, left = rng.integers(0, photo.shape[0] - side, 2)
        Image.fromarray(photo[top : top + side, left : left + side]).save(path, quality=85)
    return root


def scanning() -> Iterator[Record]:
    """Scan and decode 10,000 small JPEGs with two processes against one; then the scan of the
    unchanged folder again."""
    with roots() as root:
        images = _jpegs(root / "images", 10_000)
        files = list(folder.walk(images))
        first, again = (clocked(partial(folder.prepare, images, name="scan1")) for _ in range(2))
        folder.prepare(images, name="scan2")
        times = {}
        for n in (2, 1):
            with patch.object(manifest, "cores", lambda n=n: n):
                times[n] = clocked(lambda: manifest.parallel(inspect_file, files, desc="scan"))
                times[n] += clocked(partial(cache.build, f"scan{n}", size=64))
    told = f"10,000 JPEGs of 128 px: {times[2]:.1f} s against {times[1]:.1f} s"
    ratio = times[1] / times[2]
    yield record("scan and decode, 2 processes against 1", ratio, "x", ">= 1.8", told)
    told = f"10,000 JPEGs of 128 px: {first:.1f} s, then {again:.2f} s"
    yield record("scan again, unchanged", first / again, "x", ">= 30", told)


def _peak_mb(code: str) -> float:
    """Largest sum of private (anonymous) memory of a fresh process and its children while it runs,
    in MB."""
    process = psutil.Popen([sys.executable, "-c", code])
    peak = 0
    while process.poll() is None:
        total = 0
        for each in [process, *process.children(recursive=True)]:
            try:
                memory = each.memory_info()
                total += memory.rss - memory.shared
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak / 1e6


def memory() -> Iterator[Record]:
    """Peak private memory of the build of a cache, for two sizes of a dataset."""
    with roots() as root:
        peaks = {}
        for n in (1_000, 8_000):
            folder.prepare(_jpegs(root / f"images{n}", n), name=f"n{n}")
            code = "from data_prep import cache, manifest; manifest.cores = lambda: 2"
            peaks[n] = _peak_mb(f"{code}; cache.build('n{n}', size=128)")
    told = f"private memory of all processes together: {peaks[8_000]:.0f} against "
    told += f"{peaks[1_000]:.0f} MB, 128 px, 2 workers"
    growth = peaks[8_000] / peaks[1_000]
    yield record("memory of a build, 8,000 images against 1,000", growth, "x", "< 1.2", told)


def _plain_loop(files: list[Path], session, side: int) -> None:
    for file in files:
        with Image.open(file) as opened:
            image = np.asarray(opened.convert("RGB").resize((side, side)), np.float32) / 255
        session.run(None, {"pixels": image.transpose(2, 0, 1)[None]})


def tested() -> Iterator[Record]:
    """A finished run tested on 10,000 prepared images with all metrics and intervals, against a
    plain loop that decodes each file and runs the session."""
    n, side = 10_000, 64
    with roots() as root:
        folder.prepare(_jpegs(root / "own", 240), name="own")
        folder.prepare(images := _jpegs(root / "images", n, side=256), name="others")
        cache.build("others", size=side)
        request = {"preset": "tiny", "dataset": "own", "settings": {"size": side}}
        base = models.Detector(models.architecture("BL", size=side)).eval()
        small = prune.structured(base, rate=0.9)
        for code, model, rate in (("BL", base, None), ("CPF-S", small, 0.9)):
            run = runs.Run(runs.spec(code, rate=rate, **request))
            run.finish(model)
            session = backbones.session(run.folder / "model.onnx", threads=torch.get_num_threads())
            ours = partial(elsewhere.test, run.folder.name, "others")
            plain = partial(_plain_loop, [*folder.walk(images)], session, side)
            mine, theirs = clocked(ours), clocked(plain)
            told = f"{code}: {n / mine:,.0f} images a second, {n / theirs:,.0f} in the loop; "
            told += f"JPEGs of 256 px, {side} px, {torch.get_num_threads()} threads"
            yield record(f"test of a finished {code}", theirs / mine, "x", ">= 5", told)


def many_files() -> Iterator[Record]:
    """100,000 files, nested by generator and class: the first scan, the next one, the decoded cache
    and the audit, each in a fresh process."""
    n = 100_000
    with roots() as root:
        images = _jpegs(root / "images", n, side=32, nested=True)
        steps = {
            "scan": f"import data_prep.folder as f; f.prepare({str(images)!r}, name='many')",
            "scan again": f"import data_prep.folder as f; f.prepare({str(images)!r}, name='many')",
            "decode": "import data_prep.cache as c; c.build('many', size=32)",
            "audit": "import data_prep.audit_page as a; a.write('many')",
        }
        for name, code in steps.items():
            started = time.perf_counter()
            peak = _peak_mb(code)
            took = time.perf_counter() - started
            told = f"JPEGs of 32 px; at most {peak:.0f} MB of private memory of all processes"
            bar = {"scan": "< 60", "scan again": "< 5"}.get(name, "")
            yield record(f"100,000 files: {name}", took, "s", bar, told)


def evaluation() -> Iterator[Record]:
    """Everything that is computed of a run's predictions, for 10,000 images and 2,000 draws, on one
    core."""
    rng = np.random.default_rng(0)
    fakes = rng.choice(["a", "b", "c", "d"], 10_000)
    generators = np.where(rng.random(10_000) < 0.5, "real", fakes).astype(object)
    labels, scenes = (generators != "real").astype(int), rng.integers(2_500, size=10_000)
    a, b = (1 / (1 + np.exp(-(rng.normal(size=10_000) + labels))) for _ in range(2))

    def block() -> None:
        threshold = metrics.best_threshold(labels, a)
        metrics.evaluate(labels, a, generators, threshold=threshold, groups=scenes, draws=2_000)
        options = {"groups": scenes, "draws": 2_000}
        first = metrics.resample(labels, a, threshold=threshold, **options)[0]["all"]["auroc"]
        second = metrics.resample(labels, b, threshold=0.5, **options)[0]["all"]["auroc"]
        metrics.combine([second - first])

    value = seconds(block, repeat=3)
    told = "4 generators, all metrics with 2,000 draws by scene, and the paired test; one core"
    yield record("evaluation of 10,000 predictions", value, "s", "< 5", told)


def finished_runs() -> Iterator[Record]:
    """A study and the table of runs where 5,000 runs are finished: one real result, copied with the
    ids of 5,000 requests."""
    with roots() as root:
        folder.prepare(_jpegs(root / "images", 240), name="many")
        request = {"preset": "tiny", "dataset": "many", "methods_": ("BL", "CPF"), "rates": (0.9,)}
        plan = engine.plan(**request, seeds=range(2500))
        first = plan[0]
        assert engine.execute(first)["status"] == "done"
        template = json.loads((first.folder / "result.json").read_text())
        for s in plan:
            own = {"run_id": s.run_id, "method": s.method, "rate": s.rate, "seed": s.seed}
            own |= {"command": s.command(), "parents": [p.run_id for p in s.parents]}
            s.folder.mkdir(parents=True, exist_ok=True)
            (s.folder / "result.json").write_text(json.dumps(template | own, indent=1))
        ask = "study --preset tiny --dataset many --methods BL,CPF --rates 0.9 --dry-run --seeds"
        ask = [*ask.split(), ",".join(map(str, range(2502)))]
        for name, words in {"planning a study": ask, "the table of runs": ["results"]}.items():
            command = [sys.executable, "-m", "dflib", *words]
            run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            told = f"whole process: python -m dflib {words[0]}"
            yield record(f"{name}, 5,000 finished", seconds(run, repeat=3), "s", "< 3", told)


TWO_CORES = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))]


def papermill_loop() -> Iterator[Record]:
    """16 tiny runs of BL: the engine, its table and its report among it, against a shell loop
    around papermill, on the same two cores."""
    loop = 'for seed in $(seq 0 15); do "$0" -m papermill --no-progress-bar -p preset tiny '
    loop += '-p seed $seed 02_baseline.ipynb "$1/$seed.ipynb" || exit; done'
    with roots() as root:
        demo.prepare()
        words = ["-m", "dflib", "study", "--preset", "tiny", "--methods", "BL", "--seeds"]
        ours = [*TWO_CORES, sys.executable, *words, ",".join(map(str, range(16)))]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
        first = [sys.executable, "-c", "from dflib.data import open; open('demo', size=32)"]
        subprocess.run(first, **quiet)  # decoded once, for both
        fast = clocked(lambda: subprocess.run(ours, **quiet))
        os.environ["DFLIB_OUTPUTS"] = f"{root}/loop"
        (root / "loop").mkdir()
        theirs = [*TWO_CORES, "bash", "-c", loop, sys.executable, f"{root}/loop"]
        slow = clocked(lambda: subprocess.run(theirs, cwd=runs.NOTEBOOKS, **quiet))
    told = f"BL, seeds 0 to 15, the same two cores: {fast:.0f} s with table and report, against "
    name = "16 tiny runs, engine against a papermill loop"
    yield record(name, slow / fast, "x", ">= 1.6", f"{told}{slow:.0f} s")


FIRST_STEP = """
import os, time
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
hook = lambda *_: (Path(os.environ["FIRST_STEP"]).write_text(str(time.time())), os._exit(0))
register_optimizer_step_post_hook(hook)
"""


def _study_to_first_step(root: Path) -> float:
    """Seconds from a study's command to the first training step in its kernel."""
    site = root / "site"
    site.mkdir(exist_ok=True)
    hook = FIRST_STEP.replace("\n", "\n    ")  # every Python process looks for sitecustomize
    (site / "sitecustomize.py").write_text(
        f"import sys\nif any(w in str(sys.orig_argv) for w in ('ipykernel_', 'f.serve(')):{hook}"
    )
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "FIRST_STEP": str(root / "of-study")}
    words = [sys.executable, "-m", "dflib", "study", "--preset", "tiny", "--methods", "BL"]
    started = time.time()
    subprocess.run([*words, "--retry-failed"], env=env, capture_output=True, check=False)
    return float((root / "of-study").read_text()) - started


def overhead() -> Iterator[Record]:
    """From the start of a run to its first training step, as a notebook by the engine, and the same
    cells as a script; from the start of a study."""
    book = nbformat.read(runs.NOTEBOOKS / "02_baseline.ipynb", as_version=4)
    # it is in no run's id, and ends the process at the first step
    book.cells.insert(0, nbformat.v4.new_code_cell(FIRST_STEP))
    with roots() as root:
        demo.prepare()
        data.open("demo", size=32)
        os.environ["FIRST_STEP"] = f"{root}/first-step"
        nbformat.write(book, root / "02_baseline.ipynb")
        code = "\n".join(c.source for c in book.cells if c.cell_type == "code")
        (root / "script.py").write_text(code.replace('preset = "demo"', 'preset = "tiny"'))
        quiet = {"cwd": root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        (s,), times = engine.plan(preset="tiny", methods_=("BL",)), {"notebook": [], "script": []}
        for kind in ("notebook", "script") * 3:
            started = time.time()
            if kind == "notebook":
                with patch.object(runs, "NOTEBOOKS", root):
                    assert engine.execute(s)["status"] == "failed"  # at its first step
            else:
                subprocess.run([sys.executable, "script.py"], check=True, **quiet)
            times[kind].append(float((root / "first-step").read_text()) - started)
        whole = [_study_to_first_step(root) for _ in range(3)]
    told = "whole process: study --preset tiny --methods BL, median of 3"
    yield record("study to the first training step", float(np.median(whole)), "s", "< 4", told)
    notebook, script = (float(np.median(times[kind])) for kind in ("notebook", "script"))
    told = f"start to first training step of BL, preset tiny, median of 3: {notebook:.1f} s as "
    told += f"a notebook by the engine, {script:.1f} s as a script"
    yield record("overhead of a run", notebook - script, "s", "< 3", told)


BENCHES = {
    "engine": papermill_loop,
    "overhead": overhead,
    "finished": finished_runs,
    "evaluation": evaluation,
    "import": import_time,
    "batches": batches,
    "scanning": scanning,
    "memory": memory,
    "many": many_files,
    "tested": tested,
    "training": training_step,
    "compressed": compressed,
    "setup": setup_again,
    "teacher": cached_teacher,
    "study": study,
}


def main(wanted: list[str]) -> None:
    for name in wanted:
        choose("benchmark", name, BENCHES)
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else measure.cpu_name()
    machine = f"{chip}, {os.cpu_count()} cores"
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("benchmark", "value", "bar", "holds", "conditions", title=machine)
    records, path = [], runs.outputs_root() / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, bench in BENCHES.items():
        for r in bench() if name in (wanted or BENCHES) else ():
            records.append(r)
            path.write_text(json.dumps(records, indent=1))  # it stands, whatever comes next
            holds = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[r["holds"]]
            value = f"{r['value']:g} {r['unit']}"
            console.print(f"{r['name']}: {value} {holds}", highlight=False)
            table.add_row(r["name"], value, r["bar"], holds, r["conditions"])
    console.print(table, f"written to {path}")


if __name__ == "__main__":
    command_line(lambda: main(sys.argv[1:]))
