"""The house rules that a program can check, on every file of ours.

The rules about modules hold for the packages as installed, so also for the built wheel;
those about the whole tree are skipped where there is none.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGES = ("bandolero", "bandolero_service")
LINES_MAX = 500
FILE_BYTES_MAX = 1_000_000

REDIS_CLIENTS = {"hiredis", "redis", "valkey"}
REDIS_SPEAKER = "bandolero_service.connection"

# Each concept has one word; these are the others.
OTHER_WORDS = {
    "campaign": "experiment",
    "checkpoint": "snapshot",
    "pscore": "propensity",
    "pull": "choose",
    "retrain": "refresh",
    "scores": "probabilities",
    "treatment": "variant",
    "user": "unit",
    "visitor": "unit",
}

# Written with a class of one, so that this file passes its own rule.
UNFINISHED = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|\bbreakpoin[t]\(")
VENDORED = re.compile(
    r"\.min\.(js|css)$|(^|/)(_?vendor(ed)?|third_party|node_modules)/"
)
FOREIGN = re.compile(r"(?i)copyrigh[t] (\(c\)|©|\d{4})")

in_tree = pytest.mark.skipif(
    not (ROOT / "engine").is_dir(), reason="no source tree beside the tests"
)


def package_folder(package: str) -> Path:
    """Folder of a package as installed, found without importing it."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


def package_modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of ours."""
    for package in PACKAGES:
        folder = package_folder(package)
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), file


def parsed(file: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def tree_files() -> list[Path]:
    """Files of the checkout that are, or would be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_of(file: Path) -> str:
    """Text of a file, empty where it is binary."""
    raw = file.read_bytes()
    return "" if b"\0" in raw else raw.decode("utf-8", errors="replace")


def imported(tree: ast.Module) -> Iterator[str]:
    """Top-level package of every absolute import, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a file gives to something, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno


def words(name: str) -> set[str]:
    """Words of a snake_case or CamelCase name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def is_sentence(docstring: str | None) -> bool:
    """Whether a docstring begins with a sentence: a capital or a name, and an end."""
    first = (docstring or "").strip().partition("\n\n")[0].strip()
    return len(first.split()) >= 3 and first[-1] in ".!?:"


@pytest.fixture(scope="module")
def modules() -> list[tuple[str, Path]]:
    """Every module of ours, as (dotted name, file)."""
    return list(package_modules())


def test_modules_are_short(modules: list[tuple[str, Path]]) -> None:
    """No module has more than 500 lines: past that there is a second noun inside."""
    files = [file for _, file in modules] + sorted(TESTS.rglob("*.py"))
    lengths = {
        file: len(file.read_text(encoding="utf-8").splitlines()) for file in files
    }
    assert {f: n for f, n in lengths.items() if n > LINES_MAX} == {}


def test_modules_say_what_they_are(modules: list[tuple[str, Path]]) -> None:
    """Every module, the tests' too, opens with a sentence that says what it is."""
    files = [file for _, file in modules] + sorted(TESTS.rglob("*.py"))
    assert [f for f in files if not is_sentence(ast.get_docstring(parsed(f)))] == []


def test_public_things_have_docstrings(modules: list[tuple[str, Path]]) -> None:
    """Every public class and function at the top of a module has a docstring."""
    silent = [
        f"{module}.{node.name}"
        for module, file in modules
        for node in parsed(file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any(ast.unparse(d) == "overload" for d in node.decorator_list)
    ]
    assert silent == []


def test_tests_say_what_they_prove() -> None:
    """Every test function has a docstring that is a sentence: the fact it proves."""
    silent = [
        f"{file.name}:{node.lineno} {node.name}"
        for file in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not is_sentence(ast.get_docstring(node))
    ]
    assert silent == []


def test_only_the_store_imports_redis(modules: list[tuple[str, Path]]) -> None:
    """No module but bandolero_service.store imports a Redis client, lazily neither."""
    others = [
        module
        for module, file in modules
        if module != REDIS_SPEAKER and REDIS_CLIENTS & set(imported(parsed(file)))
    ]
    assert others == []


def test_one_word_per_concept(modules: list[tuple[str, Path]]) -> None:
    """No name in the packages uses a word for which the design has another."""
    strays = [
        f"{module}:{line} {name}: say {OTHER_WORDS[word]}"
        for module, file in modules
        for name, line in defined(parsed(file))
        for word in sorted(words(name) & OTHER_WORDS.keys())
    ]
    assert strays == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    """Each package tells type checkers that its annotations are meant."""
    assert (package_folder(package) / "py.typed").is_file()


@in_tree
def test_nothing_is_left_unfinished() -> None:
    """No Python file holds a note to come back or a stop for the debugger."""
    notes = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in tree_files()
        if file.suffix == ".py"
        for number, line in enumerate(text_of(file).splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert notes == []


@in_tree
def test_nothing_is_vendored() -> None:
    """No file was copied in from elsewhere: by its name, its size or its copyright."""
    strays = []
    for file in tree_files():
        name = file.relative_to(ROOT).as_posix()
        too_large = file.stat().st_size > FILE_BYTES_MAX
        theirs = name != "LICENSE" and FOREIGN.search(text_of(file))
        if VENDORED.search(name) or too_large or theirs:
            strays.append(name)
    assert strays == []


@in_tree
def test_no_path_of_a_machine() -> None:
    """No file names the folder that this checkout, or this home, happens to be in."""
    places = [str(place) for place in (ROOT, Path.home()) if len(place.parts) > 1]
    here = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, places))})\b")
    strays = [
        file.relative_to(ROOT).as_posix()
        for file in tree_files()
        if places and here.search(text_of(file))
    ]
    assert strays == []


@in_tree
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_locks_name_no_host_and_hash_everything(lock: str) -> None:
    """A lock works with whatever index pip is set up for, and every pin has its hash."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index-url" not in text
    pins = re.split(r"\n(?=[a-zA-Z0-9])", text)
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []


@in_tree
def test_development_lock_holds_the_other() -> None:
    """What users get is what is tested: every pin is also in the development lock."""
    pin = re.compile(r"^[a-zA-Z0-9._-]+==\S+", re.MULTILINE)
    served, tested = (
        set(pin.findall((ROOT / lock).read_text(encoding="utf-8")))
        for lock in ("requirements.lock", "requirements-dev.lock")
    )
    assert served
    assert served <= tested
