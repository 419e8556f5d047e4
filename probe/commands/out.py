"""Where results may go: checked before anything is loaded, importable without torch."""

from pathlib import Path


def free(out: Path, *, file: bool = False) -> Path:
    """The place that results will appear at, with links followed.

    Args:
        out: what was asked for; a folder that does not exist or is empty, or a link to one.
        file: a file is asked for instead, which must not exist.

    Raises:
        ValueError: something is there, or it is no place that a finished folder can be moved to.
    """
    try:
        where = out.resolve()
        exists, folder = where.exists(), where.is_dir()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--out {str(out)!r} leads nowhere ({error}); choose another --out") from None
    if where == Path.cwd():
        raise ValueError(f"--out {str(out)!r} is the folder you are in; name a new one, such as --out results/first")
    if file and folder:
        raise ValueError(f"{out} is a folder; --out names the file, such as {out / 'verdict.json'}")
    if folder and where.is_mount():
        raise ValueError(f"{out} is where a disk is mounted, which cannot be replaced; name a folder in it")
    if exists and (not folder or any(where.iterdir())):
        what = "exists" if file or not folder else "exists and is not empty"
        raise ValueError(f"{out} {what}; choose another --out, or remove it first")
    return where
