"""Checks this repository as the index of Slicer extensions will before it lists the extension.

    python tools/check_extension.py [folder]

Nothing is downloaded: addresses of pictures are checked against the files that they will show once
the repository is public. One line a check; the exit status is 1 if anything fails. What only the
public repository can show (topics on its page, whether the addresses answer) is left to the index.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
#: Keys of the catalog entry, by version of its schema.
_KEYS_101 = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies",
             "build_subdirectory", "enabled", "tier"}  # fmt: skip
_SCHEMA = re.compile(r".*/slicer-extension-catalog-entry-schema-v1\.0\.([12])\.json#?$")
_REQUIRED_KEYS = {"$schema", "category", "scm_url", "scm_revision", "build_dependencies", "tier"}
_CATEGORY = "Registration"
_REPOSITORY_PREFIX = "Slicer"
_METADATA = ("EXTENSION_HOMEPAGE", "EXTENSION_CONTRIBUTORS", "EXTENSION_DESCRIPTION",
             "EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS", "EXTENSION_DEPENDS")  # fmt: skip
_LICENSES = ("LICENSE", "LICENCE", "LICENSE.txt", "License.txt", "license.txt", "COPYING",
             "COPYING.txt")  # fmt: skip
_LIMIT_MB = 100
#: Not among the files of a checkout.
_LOCAL = {".git", ".venv", "venv", "build", "dist", ".mypy_cache", ".pytest_cache", ".ruff_cache",
          "__pycache__"}  # fmt: skip
#: What the module may import when its files are loaded: Slicer has these, and the extension itself.
_IMPORTS = {"qt", "ctk", "slicer", "vtk", "numpy", "SimpleITK", "scipy", "DeepRegLib",
            "DeepRegWidgets", "SampleData", "SubjectHierarchyPlugins"}  # fmt: skip
_TORCH = re.compile(r"(?<![\w.])(py)?torch(vision|audio)?(?![\w.])", re.IGNORECASE)
#: Functions that start programs.
_STARTERS = {"run", "call", "check_call", "check_output", "Popen", "popen", "system",
             "startDetached", "launchConsoleProcess"}  # fmt: skip
#: Smallest and largest edge in pixels, and most bytes.
_ICON_PIXELS, _SCREENSHOT_PIXELS = (64, 1024), (400, 4096)
_PICTURE_BYTES = 5_000_000

Check = Callable[[Path], Iterator[str]]


def check_entry(root: Path) -> Iterator[str]:
    """The catalog entry is JSON of its schema, with line feeds only."""
    file = _entry_file(root)
    if b"\r" in file.read_bytes():
        yield f"{file.name} has carriage returns; save it with line feeds only"
    entry = _entry(root)
    version = _SCHEMA.match(str(entry.get("$schema", "")))
    if not version:
        yield "$schema does not name version 1.0.1 or 1.0.2 of the schema"
    known = _KEYS_101 | ({"dicom_support_rule"} if version and version[1] == "2" else set())
    for key in sorted(set(entry) - known):
        yield f"the key '{key}' is unknown"
    for key in sorted(_REQUIRED_KEYS - set(entry)):
        yield f"the key '{key}' is missing"
    tier = entry.get("tier")
    if isinstance(tier, bool) or not isinstance(tier, int) or not 1 <= tier <= 5:
        yield f"the tier is {tier!r}, not 1 to 5"
    names = entry.get("build_dependencies")
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        yield "build_dependencies is not a list of names"
    if entry.get("category") != _CATEGORY:
        yield f"the category is {entry.get('category')!r}, not '{_CATEGORY}'"


def check_names(root: Path) -> Iterator[str]:
    """The extension's name does not begin with Slicer, the repository's does."""
    name = _entry_file(root).stem
    if name.lower().startswith("slicer"):
        yield f"the extension is called {name}; leave 'Slicer' away"
    address = urlsplit(str(_entry(root).get("scm_url", "")))
    repository = Path(address.path.strip("/")).name.removesuffix(".git")
    if address.scheme not in ("https", "git") or not address.netloc:
        yield "scm_url is not an https or git address"
    if not repository.startswith(_REPOSITORY_PREFIX):
        yield f"the repository is called '{repository}'; it has to begin with Slicer"


def check_project(root: Path) -> Iterator[str]:
    """The project of CMake is called as the extension, and is packed as one."""
    text = _cmake(root)
    found = re.search(r"project\s*\(\s*\"?([^\s\")]+)", text, re.IGNORECASE)
    name = _entry_file(root).stem
    if not found or found[1] != name:
        yield f"the project is {found[1] if found else 'not named'}, the extension {name}"
    for variable in ("Slicer_USE_FILE", "Slicer_EXTENSION_GENERATE_CONFIG",
                     "Slicer_EXTENSION_CPACK"):  # fmt: skip
        if f"include(${{{variable}}})" not in text:
            yield f"CMakeLists.txt does not include {variable}"


def check_metadata(root: Path) -> Iterator[str]:
    """The metadata of CMake is there and says the same as the catalog entry."""
    entry, metadata = _entry(root), _metadata(root)
    for name in _METADATA:
        if not metadata.get(name, "").strip():
            yield f"{name} is missing"
    homepage = str(entry.get("scm_url", "")).removesuffix(".git")
    if metadata.get("EXTENSION_HOMEPAGE", "").rstrip("/") != homepage:
        yield f"EXTENSION_HOMEPAGE is not {homepage}"
    if len(metadata.get("EXTENSION_DESCRIPTION", "")) < 40:
        yield "EXTENSION_DESCRIPTION does not say enough to be found"
    depends = re.split(r"[\s;]+", metadata.get("EXTENSION_DEPENDS", "").strip())
    wanted = entry.get("build_dependencies")
    if sorted(depends) != sorted(wanted if isinstance(wanted, list) else []):
        yield "EXTENSION_DEPENDS and build_dependencies differ"
    if "PyTorch" not in depends:
        yield "EXTENSION_DEPENDS lacks PyTorch, which gives torch"


def check_pictures(root: Path) -> Iterator[str]:
    """Icon and screenshots are in the repository where their addresses say, and are images."""
    metadata, entry = _metadata(root), _entry(root)
    repository = urlsplit(str(entry.get("scm_url", ""))).path.removesuffix(".git")
    base = f"https://raw.githubusercontent.com{repository}/{entry.get('scm_revision')}/"
    for name, limits in (("EXTENSION_ICONURL", _ICON_PIXELS),
                         ("EXTENSION_SCREENSHOTURLS", _SCREENSHOT_PIXELS)):  # fmt: skip
        for address in metadata.get(name, "").split():
            if not address.startswith(base):
                yield f"{address} does not begin with {base}"
                continue
            file = root / unquote(address.removeprefix(base))
            if not file.is_file():
                yield f"{file.relative_to(root)} is missing"
            else:
                yield from _picture_faults(file, *limits, square=name == "EXTENSION_ICONURL")


def check_license(root: Path) -> Iterator[str]:
    """There is a licence at the root, with a text."""
    found = [root / name for name in _LICENSES if (root / name).is_file()]
    if not found:
        yield "there is no LICENSE at the root"
    elif found[0].stat().st_size < 500:
        yield f"{found[0].name} holds no licence text"


def check_size(root: Path) -> Iterator[str]:
    """A clone of the newest commit is not larger than the index allows.

    Such a clone holds every file twice, the second time compressed under .git; the .git that lies
    here is not measured, for how full it is depends on what was done with it.
    """
    total = 2 * sum(file.lstat().st_size for file in _files(root)) / 2**20
    if total > _LIMIT_MB:
        yield f"a clone of the repository may have {total:.0f} MB; at most {_LIMIT_MB} are allowed"


def check_torch(root: Path) -> Iterator[str]:
    """Nothing installs torch by itself; that is left to the PyTorch extension."""
    for file in _sources(root, "DeepReg", "DeepRegLib"):
        for node in ast.walk(_parsed(file)):
            if not isinstance(node, ast.Call):
                continue
            texts = [n.value for n in ast.walk(node)
                     if isinstance(n, ast.Constant) and isinstance(n.value, str)]  # fmt: skip
            words = " ".join(texts)
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            pip = called in _STARTERS and {"pip", "install"} <= set(words.split())
            if (pip or called.startswith("pip_")) and _TORCH.search(words):
                yield f"{file.relative_to(root)}:{node.lineno} installs torch with pip"


def check_imports(root: Path) -> Iterator[str]:
    """Files of the module import at their top only what Slicer has."""
    for file in _sources(root, "DeepReg"):
        for name, line in _top_imports(_parsed(file).body):
            top = name.split(".")[0]
            if top not in _IMPORTS and top not in sys.stdlib_module_names:
                yield f"{file.relative_to(root)}:{line} imports {top} at file scope"


def check_readme(root: Path) -> Iterator[str]:
    """The README has a summary, a picture, how to install it, a tutorial, and how to cite it."""
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = [b.strip() for b in re.split(r"\n\s*\n", text)]
    summary = next((b for b in blocks if re.match(r"[^\W_]", b)), "")
    if not 60 <= len(summary) <= 700 or blocks.index(summary) > 3:
        yield "no summary of one or two sentences follows the title"
    if not any(True for _ in _links(text, images=True)):
        yield "there is no picture"
    headings = re.findall(r"^#+\s+(.*)$", text, re.MULTILINE)
    for word, what in ((r"install", "how to install it"), (r"tutorial", "a tutorial"),
                       (r"cit(e|ation|ing)", "how to cite it")):  # fmt: skip
        mentioned = any(re.search(word, heading, re.IGNORECASE) for heading in headings)
        if word == "install":
            mentioned = mentioned or _slicer_section_installs(text)
        if not mentioned:
            yield (
                f"no section says {what}" if word != "tutorial" else "there is no tutorial section"
            )


def check_links(root: Path) -> Iterator[str]:
    """Pictures and pages that README and docs link to are there."""
    for file in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = file.read_text(encoding="utf-8")
        for link in (*_links(text, images=True), *_links(text, images=False)):
            path = unquote(link.split("#")[0].split("?")[0])
            if path and not urlsplit(link).scheme and not (file.parent / path).exists():
                yield f"{file.relative_to(root)} links to {link}, which is not there"


CHECKS: dict[str, Check] = {
    "catalog entry": check_entry,
    "names": check_names,
    "CMake project": check_project,
    "metadata": check_metadata,
    "icon and screenshots": check_pictures,
    "licence": check_license,
    "size": check_size,
    "torch is left to PyTorch": check_torch,
    "imports at file scope": check_imports,
    "README": check_readme,
    "links": check_links,
}


def faults(root: Path, names: Iterable[str] = tuple(CHECKS)) -> dict[str, list[str]]:
    """Runs every check, or some; returns what each has found, nothing if it passed."""
    found: dict[str, list[str]] = {}
    for name in names:
        try:
            found[name] = list(CHECKS[name](root))
        except (OSError, ValueError, SyntaxError) as error:
            found[name] = [f"cannot be checked: {error}"]
    return found


def main(arguments: list[str]) -> int:
    """Prints one line a check; returns the exit status."""
    found = faults(Path(arguments[0]).resolve() if arguments else ROOT)
    for name, texts in found.items():
        print(
            f"{'FAILED' if texts else 'ok    '}  {name}"
            + "".join(f"\n          {t}" for t in texts)
        )
    return int(any(found.values()))


def _entry_file(root: Path) -> Path:
    files = sorted(root.glob("*.json"))
    if len(files) != 1:
        raise ValueError(
            f"one JSON file at the root is the catalog entry, but there are {len(files)}"
        )
    return files[0]


def _entry(root: Path) -> dict[str, object]:
    entry = json.loads(_entry_file(root).read_text(encoding="utf-8"))
    if not isinstance(entry, dict):
        raise ValueError("the catalog entry is not an object")
    return entry


def _cmake(root: Path) -> str:
    text = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def _metadata(root: Path) -> dict[str, str]:
    pairs = re.findall(r'set\s*\(\s*(EXTENSION_\w+)\s+"([^"]*)"\s*\)', _cmake(root))
    return dict(pairs)


def _picture_faults(file: Path, smallest: int, largest: int, square: bool) -> Iterator[str]:
    size = _picture_size(file)
    if size is None:
        yield f"{file.name} is no PNG or GIF image, whatever its name says"
        return
    if not (min(size) >= smallest and max(size) <= largest):
        yield f"{file.name} has {size[0]} x {size[1]} pixels, not {smallest} to {largest}"
    if square and size[0] != size[1]:
        yield f"{file.name} is not square"
    if file.stat().st_size > _PICTURE_BYTES:
        yield f"{file.name} has more than {_PICTURE_BYTES // 1_000_000} MB"


def _picture_size(file: Path) -> tuple[int, int] | None:
    """Returns width and height from the first bytes of a PNG or GIF file."""
    head = file.read_bytes()[:24]
    if len(head) == 24 and head.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack(">II", head[16:24])
    if len(head) == 24 and head[:6] in (b"GIF87a", b"GIF89a"):
        return struct.unpack("<HH", head[6:10])
    return None


def _files(root: Path) -> Iterator[Path]:
    for path in root.iterdir():
        if path.name in _LOCAL or path.name.endswith(".egg-info"):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _sources(root: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _top_imports(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Yields (module, line) of what runs when a file is imported; relative imports left out."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level and node.module:
                yield node.module, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        else:
            for name in ("body", "orelse", "finalbody"):
                yield from _top_imports(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_imports(handler.body)


def _links(text: str, images: bool) -> Iterator[str]:
    """Yields the targets of Markdown links, or of pictures (HTML ones, too)."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    mark = "!" if images else r"(?<!!)"
    for found in re.finditer(mark + r"\[[^\]]*\]\(\s*<?([^)\s>]+)", text):
        yield found[1]
    for found in re.finditer(r"<img[^>]*\ssrc=[\"']([^\"']+)", text) if images else ():
        yield found[1]


def _slicer_section_installs(text: str) -> bool:
    """Tells whether a section about Slicer says how to install the extension there."""
    sections = re.split(r"^#+\s+", text, flags=re.MULTILINE)
    return any("Slicer" in s.split("\n")[0] and "extension manager" in s for s in sections[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
