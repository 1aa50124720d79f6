"""The build folder: a program and the network that it was compiled from."""

import hashlib
import json
from pathlib import Path

from ..golden.network import QuantizedNetwork
from ..golden.program import Program

__all__ = ["NETWORK", "load_build", "save_build"]

NETWORK = "network.safetensors"


def save_build(program: Program, network: Path | str, folder: Path | str) -> None:
    """Write the files of :meth:`Program.save` and a copy of the file `network` to `folder`.

    All are complete before the first of them is put in place, and the manifest comes last: a folder
    left in between is refused when it is read. The same network gives the same bytes.
    """
    folder = Path(folder)
    content = Path(network).read_bytes()
    part = folder.with_name(folder.name + ".part")
    program.save(part)
    (part / NETWORK).write_bytes(content)
    manifest = part / "manifest.json"
    hashes = json.loads(manifest.read_text(encoding="utf-8"))
    hashes[NETWORK] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    if not folder.exists():
        part.rename(folder)
        return
    for name in [*(name for name in hashes), manifest.name]:
        (part / name).replace(folder / name)
    part.rmdir()


def load_build(folder: Path | str) -> tuple[Program, QuantizedNetwork]:
    """The program and the network of a folder that :func:`save_build` wrote.

    Raises ``ValueError``, naming a file that is missing or altered.
    """
    program = Program.load(folder)
    path = Path(folder) / NETWORK
    hashes = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    network = QuantizedNetwork.load(path)
    if hashes.get(NETWORK) != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"{path}: differs from the manifest; compile again")
    return program, network
