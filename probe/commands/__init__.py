"""The commands of the shell, one file each: a dataclass of options whose ``run`` does the work.

``probe`` finds a command by its file; a sweep file names the same commands and the same options. Nothing heavy is
imported before ``run``.
"""
