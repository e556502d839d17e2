"""Giving up a listed file that is lost for good, so that the rest can be settled again.

An empty file is listed in its place; whatever is left of it is in `quarantine/`, with the
reason. Whoever reads the lake afterwards finds it whole, without those rows.
"""

from bandolero.lake.catalog import TABLES, BadFile, Commit, Lake


def holder_of(lake: Lake, path: str) -> Commit:
    """The commit that lists a file.

    Raises
    ------
    LookupError
        When none does.
    """
    for commit in lake.commits():
        if any(file.path == path for file in commit.files):
            return commit
    raise LookupError(f"path == {path!r}, must be a file that the lake lists.")


def give_up(lake: Lake, commit: Commit, path: str) -> BadFile:
    """List an empty file in the place of one; nobody else may rewrite its commit meanwhile.

    Raises
    ------
    ValueError
        When the file is as it was written: there is nothing to give up.
    OSError
        When it cannot be told, for the storage does not answer.
    """
    (file,) = (file for file in commit.files if file.path == path)
    try:
        lake.read_file(file)
    except (FileNotFoundError, ValueError) as error:
        lost = BadFile(path, " ".join(str(error).split())[:300], file.rows)
    else:
        raise ValueError(f"path == {path!r}, must be lost: it is as it was written.")
    lake.quarantine(file, f"given up: {lost.reason}")
    lake.rewrite(commit, {file: TABLES[file.table].empty_table()})
    return lost
