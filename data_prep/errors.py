"""The one error of bad input: it names the thing, the value, what was expected, the next step."""

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


def shown(text: object) -> str:
    r"""Text from outside (names are data) on one line: what does not print stands as its escape.

    >>> shown("Icon\r"), shown("a[/b] 🙂.jpg")
    ('Icon\\r', 'a[/b] 🙂.jpg')
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class InputError(ValueError):
    """Bad input from a user. The command line prints it as one line and exits with 2."""

    def __str__(self) -> str:
        return re.sub(r"(\S{200})\S{100,}(\S{50})", r"\1…\2", shown(super().__str__()))


def short(value: object, most: int = 80) -> str:
    r"""A value as a message shows it: quoted, on one line, cut where it is long.

    >>> short("a\nb"), len(short("[" * 100_000))
    ("'a\\nb'", 80)
    """
    text = shown(repr(value))
    return text if len(text) <= most else f"{text[: most - 20]}…{text[-19:]}"


def choose(kind: str, value: str, valid: Iterable[str], *, hint: str = "") -> str:
    """`value` if it is one of `valid`; else `InputError` with the nearest name and all of them.

    >>> choose("preset", "demo", ["tiny", "demo"])
    'demo'
    """
    valid = tuple(sorted(valid) if isinstance(valid, set | frozenset) else valid)
    if value in valid:
        return value
    folded = {str(v).lower(): str(v) for v in valid}
    near = get_close_matches(str(value)[:255].lower(), folded, n=1, cutoff=0.4)
    nearest = f", did you mean {folded[near[0]]!r}?" if near else ";"
    names = ", ".join(map(str, valid[:100])) + ", …" * (len(valid) > 100) or "none yet"
    raise InputError(f"unknown {kind} {short(value)}{nearest} Valid: {names}.{hint and ' ' + hint}")


def check_rate(rate: float) -> float:
    """`rate` itself when it lies in (0, 1); else `InputError` that says what was probably meant."""
    if 0 < rate < 1:
        return rate
    meant = f", did you mean {rate / 100:g}?" if 1 < rate < 100 else ";"
    what = "it is the share of parameters removed, e.g. 0.9"
    raise InputError(f"rate {rate:g} is outside (0, 1){meant} {what}")


def command_line(app: Callable[[], None]) -> None:
    """Run a command line; bad input is one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files, where it is no UTF-8
    try:
        for word in sys.argv[1:]:
            if not word.strip(" ,") or re.fullmatch(r"--[\w-]+=[ ,]*", word):
                raise InputError(f"{short(word)} is empty: give a value, or leave it out")
        app()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except OSError as error:  # a full or read-only disk, a name of 300 letters
        where = f"{short(str(error.filename), 300)[1:-1]}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        sys.exit(2)
