"""The shape of the source, read from its syntax: who imports whom, how big things are, which words and calls are out.

Ruff counts arguments, branches and complexity; what it cannot see is here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedprompt import methods
from fedprompt.clip import families
from fedprompt.config.registry import AGGREGATION_RULES, ATTACKS, PARTITION_RULES, SERVER_OPTIMIZERS, SOURCES

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fedprompt"
TREES = {path.relative_to(SOURCE): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
METHODS = {Path("methods") / f"{name}.py" for name in methods.names()}

# A package imports only from packages of a lower rank; those of one rank stand beside each other.
RANKS = {
    **dict.fromkeys(("child_processes", "errors", "seeding"), 0),
    "__init__": 0.1,
    "arguments": 0.3,
    "file_system": 0.4,
    "text_files": 0.5,
    **dict.fromkeys(("config", "ops", "updates"), 1),
    "data": 2,
    "clip": 3,
    "methods": 4,
    "federated": 5,
    "records": 5,
    **dict.fromkeys(("runtimes", "demo", "descriptions"), 6),
    **dict.fromkeys(("report", "testing"), 7),
    "experiments": 8,
    **dict.fromkeys(("studies", "deploy", "webapp"), 9),
    "api": 9.5,
    "cli": 10,
    "__main__": 11,
}
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def each_file(paths: object = TREES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", sorted(paths), ids=str)


@each_file()
def test_json_is_written_without_nan(path: Path) -> None:
    """Files and messages are strict JSON: `json_text` writes it, and where that is out of reach a call says so."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump", "dumps"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_nan") == "False", f"{path}:{node.lineno} may write NaN; use text_files.json_text"


# The one reader of each form of file, and modules that read only files of the package itself.
READERS = {
    "json.loads": ("text_files.py",),
    "tomllib.loads": (
        *("text_files.py", "config/tuned.py", "studies/published.py", "studies/published_tables.py"),
        *("descriptions/bundled/files.py", "data/published/catalog.py", "demo/pretraining/vocabulary.py"),
    ),
    "csv.reader": ("data/intake/tables.py",),
    "Image.open": ("data/image_formats.py", "demo/sprites.py", "demo/pretraining/rasters.py"),
    "tarfile.open": ("data/sources/webdataset.py", "demo/pretraining/rasters.py"),
    "open": ("file_system.py",),
    "json.load": ("demo/pretraining/rasters.py",),  # as tarfile.open: a fetched package whose SHA-512 is known
    **dict.fromkeys(("tomllib.load", "csv.DictReader", "zipfile.ZipFile", "yaml.safe_load"), ()),
}


@each_file()
def test_files_of_each_form_are_opened_by_one_reader(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        allowed = READERS.get(ast.unparse(node.func)) if isinstance(node, ast.Call) else None
        assert allowed is None or path.as_posix() in allowed, f"{path}:{node.lineno} reads a file without limits"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, e.g. "fedprompt.ops.layers.unit" and "torch"."""
    found: set[str] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@each_file()
def test_imports_point_down(path: Path) -> None:
    own = package(path)
    assert own in RANKS, f"give {own} a rank in {Path(__file__).name}"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "fedprompt":
            target = rest[0] if rest and rest[0] in RANKS else "__init__"
            assert target == own or RANKS[target] < RANKS[own], f"{path} imports {name}"


@each_file(METHODS)
def test_a_method_knows_words_pictures_and_the_backbone_only(path: Path) -> None:
    allowed = ("clip.model", "data.images", "data.labels", "errors", "methods.base", "ops")
    for name in imports(path):
        if name.startswith("fedprompt"):
            assert name.startswith(tuple(f"fedprompt.{part}." for part in allowed)), f"{path} imports {name}"


OPTIONAL = {
    "accelerate": ("experiments/trackers.py",),
    "cryptography": ("deploy/certificates.py", "deploy/identity.py", "federated/secure"),
    "dp_accounting": ("federated/privacy/accounting.py",),
    "flwr": ("runtimes/flower",),
    "httpx": ("descriptions/endpoint.py",),
    "llm": ("descriptions/plugins.py",),
    "prometheus_client": ("deploy/metrics.py",),
    "ray": ("runtimes/ray",),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_package_is_imported_in_one_place(name: str) -> None:
    importers = {path for path in TREES if name in {found.split(".")[0] for found in imports(path)}}
    assert all(path.as_posix().startswith(OPTIONAL[name]) for path in importers)


@each_file()
def test_files_and_functions_are_small(path: Path) -> None:
    lines = len((SOURCE / path).read_text(encoding="utf-8").splitlines())
    assert lines < 150 if path in METHODS else lines <= 450
    if lines > 300:
        warnings.warn(f"{path} has {lines} lines; split it by subject", stacklevel=1)
    for function in functions(TREES[path]):
        # The function itself and its docstring count too.
        assert sum(isinstance(node, ast.stmt) for node in ast.walk(function)) <= 40 + 2, f"{function.name} is long"
        assert nesting(function.body) <= 3, f"{function.name} is deep"


def nesting(body: list[ast.stmt]) -> int:
    """How many blocks stand inside each other; an `elif` is no deeper than its `if`."""
    return max((depth(node) for node in body), default=0)


def depth(node: ast.AST) -> int:
    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return 0  # counted on its own
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        return max(1 + nesting(node.body), depth(node.orelse[0]))
    return isinstance(node, BLOCKS) + max((depth(part) for part in parts), default=0)


@each_file()
def test_every_file_says_what_it_is(path: Path) -> None:
    first = (ast.get_docstring(TREES[path]) or "").split("\n")[0]
    assert len(first.split()) > 3 and first.endswith((".", "!", "`"))


@each_file(METHODS)
def test_a_method_names_whose_idea_it_is_and_what_its_options_mean(path: Path) -> None:
    kind = methods.load(path.stem)
    year = r"\b(19|20)\d\d\b"
    assert re.search(year, (ast.get_docstring(TREES[path]) or "").split("\n")[0])
    assert re.search(year, kind.__doc__ or "")
    for option in methods.options(kind):
        assert re.search(rf"^ +{option}: \S.*", kind.__doc__ or "", re.MULTILINE), f"{option} is not explained"


def test_nothing_is_chosen_by_a_methods_or_data_sets_name() -> None:
    for path, tree in TREES.items():
        advice = Path("data/intake/other_form.py")  # says which source reads what a user gave, and chooses none
        if path in {Path("config/registry.py"), advice} or package(path) in {"demo", "cli"}:
            continue
        plain = {"sites", "published"}  # words that also mean something else, such as a column of a table
        foreign = {*methods.names(), *SOURCES.names()} - plain - ({path.stem} if path in METHODS else set())
        used = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not used & foreign, f"{path} names {used & foreign}"


def test_the_battery_names_no_method() -> None:
    for path in (Path(__file__).parent / "test_conformance.py", *(SOURCE / "testing").glob("*.py")):
        battery = path.read_text(encoding="utf-8")
        assert not [name for name in methods.names() if re.search(rf"\b{name}\b", battery, re.IGNORECASE)], path.name


BANNED = {
    r"torch\.manual_seed|\bmanual_seed_all|(?<![\w.])random\.\w|\bimport random\b|np\.random\.\w": (
        "seeding.py",
        "testing/properties.py",  # which checks that nobody else uses the global generators
    ),
    r"\bpickle\b|torch\.load\b|torch\.save\b|allow_pickle": (
        "api/hub.py",  # which refuses them
        "clip/checkpoints/reading.py",  # which reads tensors alone
    ),
    r"yaml\.load\b|(?<![\w.])(?:eval|exec)\(|shell=True|os\.system\b": (),
    r"\bdm\b|\bn_cls\b|\bmeta_net\b|\bw_glob\b|\bcfg\b": (),
    r"class \w*(Utils?|Helper|Manager|Handler|Common)\b": (),
    r"\bAAAA|\bpdb\b|breakpoint\(|\bTODO\b|\bFIXME\b|\bXXX\b": (),
}


@pytest.mark.parametrize(("pattern", "excepted"), BANNED.items())
def test_banned_words(pattern: str, excepted: tuple[str, ...]) -> None:
    for path in TREES:
        text = "" if path.as_posix() in excepted else (SOURCE / path).read_text(encoding="utf-8")
        assert not (found := re.search(pattern, text)), f"{path}: {found and found[0]}"
        assert path.stem not in {"utils", "util", "helpers", "helper", "manager", "handler", "common"}


@each_file(path for path in TREES if package(path) != "config")
def test_classes_and_functions_take_plain_arguments(path: Path) -> None:
    for function in functions(TREES[path]):
        for node in ast.walk(function.args):
            if isinstance(node, ast.arg):
                assembly = package(path) in {"experiments", "studies", "cli"}
                assert assembly or node.arg not in {"cfg", "config", "args", "kwargs"}, f"{function.name}({node.arg})"
                assert "dict[str, Any]" not in ast.unparse(node.annotation or ast.Constant(0)), function.name
        assert "dict[str, Any]" not in ast.unparse(function.returns or ast.Constant(0)), function.name


@each_file(path for path in TREES if package(path) in {"methods", "ops"})
def test_a_line_that_changes_shapes_says_the_new_one(path: Path) -> None:
    lines = (SOURCE / path).read_text(encoding="utf-8").splitlines()
    calls = (node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call))
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"einsum", "unflatten", "cat", "reshape"}:
            said = " ".join(lines[call.lineno - 1 : call.end_lineno])
            assert re.search(r"# .*\[", said), f"{path}:{call.lineno} has no shape comment"


def test_a_round_is_built_in_one_place() -> None:
    calls = [ast.unparse(node.func) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls.count("Round") == 1


@pytest.mark.parametrize("module", ["fedprompt", "fedprompt.cli.main"])
def test_importing_is_cheap(module: str) -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'flwr', 'ray'}"
    run(f"import sys, {module}; loaded = {heavy} & set(sys.modules); sys.exit(f'loads {{loaded}}' if loaded else 0)")


def test_everything_but_deployments_works_without_their_packages() -> None:
    names = [".".join(("fedprompt", *path.with_suffix("").parts)).removesuffix(".__init__") for path in TREES]
    theirs = ("fedprompt.runtimes.flower", "fedprompt.runtimes.ray", "fedprompt.experiments.on_ray", "fedprompt.deploy")
    names = [name for name in names if not name.startswith(theirs)]
    names = [name for name in names if not name.endswith("__main__")]
    without = "for name in ('flwr', 'ray', 'dp_accounting'): sys.modules[name] = None"
    run(f"import importlib, sys\n{without}\nfor name in {names}: importlib.import_module(name)")


def test_the_client_app_starts_without_torch() -> None:
    pytest.importorskip("flwr")
    heavy = "{'torch', 'transformers', 'matplotlib', 'pydantic'}"
    module = "fedprompt.deploy.apps"
    run(f"import sys, {module}; loaded = {heavy} & set(sys.modules); sys.exit(f'loads {{loaded}}' if loaded else 0)")


def run(program: str) -> None:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_readme_maps_every_folder() -> None:
    """Every package is a line of the map, and a folder inside it is named in that line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.partition("<!-- map -->")[2].partition("<!-- end of map -->")[0].strip().splitlines()[1:-1]
    assert 12 <= len(lines) <= 20
    sentences = dict(re.split(r" +", line, maxsplit=1) for line in lines)
    for folder in sorted({path.parent for path in TREES} - {Path()}):
        top, *inner = folder.parts
        sentence = sentences.get(f"src/fedprompt/{top}/", "")
        assert sentence, f"the map lacks src/fedprompt/{top}/"
        assert all(f"{name}/" in sentence for name in inner[:1]), f"the map lacks src/fedprompt/{folder.as_posix()}/"


def test_the_design_page_shows_the_layers_that_are_enforced() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    shown = page.partition("Imports point down only")[2].split("```")[1].strip().splitlines()
    ranks: dict[int, set[str]] = {}
    for name, rank in RANKS.items():
        if not name.startswith("__"):
            ranks.setdefault(rank, set()).add(name)
    assert [set(line.split()) for line in reversed(shown)] == [ranks[rank] for rank in sorted(ranks)]


PRIVATE_WORDS = (
    "desk", "parcel", "lesson", "liar", "liars", "shelf", "mailbox", "carrier", "lexicon", "noun", "nouns", "verb",
    "verbs", "likeliest", "chances", "correspondence", "forge", "sift",
)  # fmt: skip
FIELD_TERMS = (
    "byzantine", "malicious", "adversary", "poison", "backdoor", "few-shot", "non-iid", "registry", "evaluator",
    "co-occurrence", "heterogeneity", "dirichlet", "secure aggregation", "differential privacy", "straggler", "dropout",
    "quorum", "feature cache", "checkpoint", "fedavg", "fedprox", "lora", "multi-label", "prompt tuning",
)  # fmt: skip
SEARCHED = {path: path.read_text(encoding="utf-8").lower() for path in SOURCE.rglob("*.py")}


@pytest.mark.parametrize("word", PRIVATE_WORDS)
def test_private_words_are_not_used(word: str) -> None:
    """Metaphors of an earlier version: a reader who knows the field would not search for them."""
    where = [str(path.relative_to(SOURCE)) for path, text in SEARCHED.items() if re.search(rf"\b{word}\b", text)]
    assert not where


@pytest.mark.parametrize("term", FIELD_TERMS)
def test_terms_of_the_field_are_found(term: str) -> None:
    assert any(term in text for text in SEARCHED.values())


def test_recipes_are_bound_in_one_place() -> None:
    calls = [ast.unparse(node.func) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls.count("check_options") == 1


@each_file(path for path in TREES if package(path) in {"deploy", "experiments", "studies", "cli"})
def test_building_blocks_are_not_told_apart_by_identity(path: Path) -> None:
    """`rule is by_site` would be a branch on a name: a property of the plan says what the branch needs."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Compare) and any(isinstance(one, ast.Is | ast.IsNot) for one in node.ops):
            compared = {one.id for one in (node.left, *node.comparators) if isinstance(one, ast.Name)}
            assert not compared & BUILDING_BLOCKS, ast.unparse(node)


BUILDING_BLOCKS = {
    builder.__name__
    for registry in (SOURCES, PARTITION_RULES, AGGREGATION_RULES, SERVER_OPTIMIZERS, ATTACKS)
    for builder in registry.builders.values()
}


def test_torchs_reader_is_only_called_for_tensors() -> None:
    calls = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert [{one.arg: ast.unparse(one.value) for one in call.keywords}["weights_only"] for call in found] == ["True"]


def test_no_family_of_backbones_is_told_apart_by_name_outside_the_backbone() -> None:
    names = {*families.names(), "siglip2"}
    for path, tree in TREES.items():
        if package(path) in {"methods", "federated", "experiments", "runtimes", "deploy", "studies", "report"}:
            used = {
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not used & (names - {"clip"}), f"{path} names {used & names}"
            assert "model_type" not in (SOURCE / path).read_text(encoding="utf-8"), f"{path} asks for the model_type"
