"""The table of methods, and the presets: whatever lists methods reads them here."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.errors import InputError, check_rate, choose, short
from data_prep.manifest import DECODING
from dflib.study.settings import DEFAULTS, FIELDS, checked, expected

# of the code that makes results: a change of what it computes gives runs other ids, so it raises
# the number (tests/test_golden.py holds what each computes); decoding is in the data's fingerprint
VERSIONS = {"data": DECODING, "models": 1, "train": 1, "evaluate": 1}
VERSIONS |= {"prune": 1, "distill": 1, "quantize": 2, "lowrank": 2, "adapters": 2}
TECHNIQUES = {  # by the groups of settings, and by the notebook where no setting tells
    "prune": ("prune", "structured", "chain", "03_prune"),
    "distill": ("distill", "teacher", "chain"),
    "quantize": ("int8", "chain", "05_quantize", "08_tl_quantize"),
    "lowrank": ("06_low_rank",),
    "adapters": ("transfer", "adapter"),
}


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    code: str
    title: str
    notebook: str
    parents: tuple[str, ...] = ("BL",)  # it starts from their runs; "BL@source": on the source
    does: tuple[str, ...] = ()  # groups of settings that it reads
    rated: bool = True  # takes a compression rate

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that it reads; all methods read those of the data and the measuring."""
        groups = {"data", *self.does, "measure"}
        return tuple(name for name, field in FIELDS.items() if groups & {*field["groups"]})

    @property
    def transfers(self) -> bool:
        """Whether it starts from another dataset, the source."""
        return any("@source" in parent or METHODS[parent].transfers for parent in self.parents)


COMBINED = ("structured", "finetune", "distill", "int8")
ADAPTER = ("adapter",)
ROWS = (
    Method("BL", "baseline", "02_baseline", (), ("baseline",), rated=False),
    Method("CPF", "magnitude pruning, fine-tuned", "03_prune", does=("prune", "finetune")),
    Method("CPF-S", "structured pruning, fine-tuned", "03_prune", does=("structured", "finetune")),
    Method("SCRATCH", "the pruned shape from scratch", "03_prune", ("BL", "CPF-S"), ("budget",)),
    Method("CKD-0", "the student without a teacher", "04_distill", does=("student",)),
    Method("CKD", "knowledge distillation", "04_distill", ("BL", "CKD-0"), ("student", "distill")),
    Method("CQ", "int8 linear layers", "05_quantize", rated=False),
    Method("CQ-S", "int8 convolutions and linear layers", "05_quantize", ("BL",), ("int8",), False),
    Method("CPKDQ", "pruned, distilled, int8", "18_combine", does=COMBINED),
    Method("chain", "a chain of steps", "18_combine", ("BL",), ("chain", *COMBINED), False),
    Method("TL+FT", "transfer, fine-tuned", "07_tl_finetune", ("BL@source",), ("transfer",), False),
    Method("TL+FT+Q", "transfer, int8 linear layers", "08_tl_quantize", ("TL+FT",), (), False),
    Method("TL+P+FT", "transfer of a pruned model", "09_tl_prune", ("CPF@source",), ("transfer",)),
    Method(
        "TL+KD", "transfer by distillation", "10_tl_distill", ("BL@source", "TL+FT"), ("teacher",)
    ),
    Method("TL+P+A", "adapter in the pruned model", "11_tl_prune_adapter", ("TL+P+FT",), ADAPTER),
    Method("TL+KD+A", "adapter in the student", "12_tl_distill_adapter", ("TL+KD",), ADAPTER),
    Method("LRF", "low-rank factorisation, fine-tuned", "06_low_rank", does=("finetune",)),
)
METHODS = {row.code: row for row in ROWS}


@dataclass(frozen=True)
class Preset:
    """A named grid and its settings (those that differ from the defaults)."""

    dataset: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    settings: dict
    about: str
    source: str = "demo-source"


COMPRESSED = ("BL", "CPF", "CKD", "CQ", "CQ-S")
FIRST = ("BL", "CPF-S", "CKD", "CPKDQ")
DEMO = (*COMPRESSED, "CPF-S", "CKD-0", "CPKDQ")
PAPER = (*COMPRESSED, "TL+FT", "TL+FT+Q", "TL+P+FT", "TL+KD", "TL+P+A", "TL+KD+A")
LITTLE = {"size": 32, "epochs": 2, "finetune_epochs": 1, "transfer_epochs": 1}
TINY = LITTLE | {"limit": 48, "latency_runs": 5, "draws": 50}
# few images learn the traces in few epochs where the network sees high-pass residuals, and takes
# many small steps
SMALL = LITTLE | {"epochs": 3, "distill_epochs": 2, "transfer_epochs": 2, "front": "srm"}
SMALL |= {"batch": 16, "prune_steps": 2}
QUICK = {"size": 64, "epochs": 12, "finetune_epochs": 4, "transfer_epochs": 4}
RATES = (0.6, 0.7, 0.8, 0.9)
LARGE = {"size": 224, "patience": 8}
PRESETS = {
    "tiny": Preset("demo", PAPER, (0.9,), (0,), TINY, "seconds: its numbers mean nothing"),
    # the transfers take as long again: --methods TL+FT,TL+KD,…
    "demo": Preset("demo", DEMO, (0.6, 0.9), (0,), SMALL, "minutes on two cores, offline"),
    "quick": Preset("demo", FIRST, (0.9,), (0,), QUICK, "own images: what to know first"),
    "paper": Preset(
        "faces-140k", PAPER, RATES, (0, 1, 2), LARGE, "the paper's grid, for GPUs", "dogs-vs-cats"
    ),
}
FOLDS = {"leave-one-out": "hold_out", "one-to-all": "train_generators"}  # set to each generator


def method(code: str) -> Method:
    """The row of a method; raises `InputError` with the nearest code for an unknown one."""
    return METHODS[choose("method", code, METHODS)]


def made_by(notebook: str) -> tuple[str, ...]:
    """Codes of the methods that a notebook makes; of several its parameter `method` names one."""
    return tuple(row.code for row in METHODS.values() if row.notebook == notebook)


def preset(name: str) -> Preset:
    """The preset of that name; raises `InputError` for an unknown one."""
    return PRESETS[choose("preset", name, PRESETS)]


def lineage(code: str) -> list[str]:
    """The method and all that it starts from, on either dataset."""
    parents = [parent.removesuffix("@source") for parent in method(code).parents]
    return [code, *(c for parent in parents for c in lineage(parent))]


def versions(code: str) -> dict[str, int]:
    """Of the code that decides the method's result, that of what it starts from included."""
    rows = [METHODS[each] for each in lineage(code)]
    read = {name for row in rows for name in (*row.does, row.notebook)}
    return {name: n for name, n in VERSIONS.items() if read & {*TECHNIQUES.get(name, read)}}


def settings(preset_name: str, overrides: dict | None = None) -> dict:
    """All settings of a preset with `overrides` on top; raises `InputError` as `checked` does.

    What is not given becomes what fits another network or its weights.
    """
    given = overrides or {}
    values, fits = checked(preset(preset_name).settings | given), {}
    if values["backbone"] != "vgg":
        fits["trainable"] = "all"  # the default names layers of the vgg
        fits["adapter_form"] = "residual"  # few images cannot mend what the serial one breaks
    if values["pretrained"]:
        fits["front"] = DEFAULTS["front"]  # weights that know pixels
    values |= {name: value for name, value in fits.items() if name not in given}
    steps = parse_steps(values["steps"])
    return values | {"steps": ",".join(f"{kind}:{r!r}" if r else kind for kind, r in steps)}


def relevant(code: str, values: dict) -> dict:
    """The settings that the method reads (no other may change its run's id)."""
    return {key: values[key] for key in method(code).keys}


def setting_rows(code: str | None = None) -> list[dict]:
    """All settings, or those that a method reads, as rows of a table for people."""
    rows = []
    for name in FIELDS if code is None else method(code).keys:
        readers = [row.code for row in ROWS if name in row.keys]
        row = {"setting": name, "takes": expected(name), "default": DEFAULTS[name]}
        row |= {"what": FIELDS[name]["description"], "source": FIELDS[name]["source"]}
        row["read by"] = "all" if len(readers) == len(ROWS) else ", ".join(readers)
        row["changes"] = "the measuring" if FIELDS[name]["measures"] else "the result"
        rows.append(row)
    return rows


RATED = ("prune", "mask", "student")  # channels go, weights become zero, a student takes over
INT8 = ("int8", "int8-linear")
STEPS = (*RATED, "finetune", "distill", *INT8)
CPKDQ = "prune:{rate:g},distill,int8"


def parse_steps(text: str) -> tuple[tuple[str, float | None], ...]:
    """The steps of a chain; a rate is a share of BL's parameters.

    Raises `InputError` for an unknown step, a wrong rate, and an order that makes no sense.

    >>> parse_steps("prune:0.8,int8")
    (('prune', 0.8), ('int8', None))
    """
    steps: list[tuple[str, float | None]] = []
    for word in text.split(","):
        kind, _, given = word.strip().partition(":")
        choose("step", kind, STEPS)
        try:
            rate = float(given) if given or kind in RATED else None
        except ValueError:
            raise InputError(
                f"step {short(word.strip())}: write {kind}:RATE, e.g. {kind}:0.9"
            ) from None
        steps.append((kind, rate if rate is None else check_rate(rate)))
    kinds = [kind for kind, _ in steps]
    rates = [rate for _, rate in steps if rate]
    rules = {
        f"only {', '.join(RATED)} take a rate": len(rates) == sum(k in RATED for k in kinds),
        "int8 comes last: what it made is not trained or cut": not {*INT8} & {*kinds[:-1]},
        "a student comes first: it throws away what is before it": "student" not in kinds[1:],
        "a student is trained next: by distill or finetune": (
            kinds[0] != "student" or {*kinds[1:2]} & {"distill", "finetune"}
        ),
        "prune does not see the zeros of mask: prune first": (
            "mask" not in kinds or "prune" not in kinds[kinds.index("mask") :]
        ),
        "each rate must be larger than the one before": rates == sorted({*rates}),
        "nothing is compressed; add prune, mask, student or int8": rates or {*INT8} & {*kinds},
    }
    for rule, kept in rules.items():
        if not kept:
            raise InputError(f"steps {short(text)}: {rule}")
    return tuple(steps)


def fold(params: dict) -> str:
    """Which generators a run was trained on: "without dalle2", "on dalle2 alone"; "" for all."""
    held, only = (params.get(k, "").replace(",", ", ") for k in ("hold_out", "train_generators"))
    return f"without {held}" if held else f"on {only} alone" if only else ""
