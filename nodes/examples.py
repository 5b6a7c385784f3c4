"""The pictures that the example workflows load, put into ComfyUI's input folder when the pack is loaded."""
from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..models.whole_files import whole_file, write_whole

log = logging.getLogger(__name__)
EXAMPLES = Path(__file__).resolve().parents[1] / "workflows" / "inputs"
MARK = "oneshot_atelier_examples.txt"  # in ComfyUI's user folder: what was put there once


def put_examples(inputs: Path, user: Path, examples: Path = EXAMPLES) -> list[str]:
    """Copies every file of `examples` that was never put into `inputs` before; their names, as 'a/b.png'. A file of
    that name is left as it is, and one that was deleted stays away. Folders that cannot be written are logged."""
    mark, put = user / MARK, []
    try:
        known = set(mark.read_text(encoding="utf-8").splitlines()) if mark.exists() else set()
        names = [path.relative_to(examples).as_posix() for path in sorted(examples.rglob("*")) if path.is_file()]
        for name in names:
            if name not in known and not (inputs / name).exists():
                with whole_file(inputs / name) as file:
                    shutil.copyfile(examples / name, file)
                put.append(name)
        if not known.issuperset(names):
            write_whole(mark, "".join(f"{name}\n" for name in sorted(known.union(names))))
    except OSError as error:
        log.warning("the example workflows' pictures could not all be put into %s: %s. Copy them there from %s", inputs,
                    error, examples)
    return put
