"""The verb `fetch-list`: the pictures of a list, each given by a path or an address and its SHA-256, become a local folder that `import-images` reads.

The list is a CSV with the columns `sha256` and `path` (of a local file, relative to the list) or `url` (http or https), or both; `caption` and `concept`
are kept. It says exactly which pictures are meant without holding them: members and held-outs of a pretraining set, say, which an unshifted split such as
LAION-mi's draws from one source. Whatever is not the listed picture to the last bit is not used.

Writes `<out>/pictures/<sha256>.<format>`, `missing.csv` (columns line, source, reason) and `fetch.meta.json`, and last `metadata.csv`.
"""

import hashlib
import re
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from tuneleak import files, runtime
from tuneleak.data.pictures import FORMATS
from tuneleak.errors import InputError

COLUMNS = ("file_name", "caption", "concept")  # of metadata.csv, as import-images reads it
LARGEST = 50_000_000  # bytes of one picture
SECONDS, AT_ONCE, TRIES = 30, 8, 2
AGENT = "tuneleak (research; fetches listed pictures once)"


def fetch_list(pictures, out, skip_missing=False):
    """Fetch the pictures that the CSV `pictures` lists into the folder `out`; what is there already, bit for bit, is not fetched again.

    skip_missing: leave out what is gone, has changed or is no picture, and list it in missing.csv. Raises `InputError` for a list that is not sound, and for
    the first such picture otherwise.
    """
    pictures, out = Path(pictures), Path(out)
    rows = _rows(pictures)
    with runtime.output_lock(out):
        (out / "metadata.csv").unlink(missing_ok=True)  # its presence says that the folder is complete
        found, missing = [], []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fetched = pool.map(lambda row: _fetch(row, pictures.parent, out / "pictures"), rows)
            for row, (name, problem) in zip(rows, runtime.progress(fetched, "pictures of the list", total=len(rows)), strict=True):
                if name:
                    found.append({"file_name": f"pictures/{name}", "caption": row["caption"], "concept": row["concept"]})
                    continue
                missing.append({"line": row["line"], "source": row["url"] or row["path"], "reason": problem})
                if not skip_missing:
                    pool.shutdown(cancel_futures=True)
                    told = f"{pictures}, line {row['line']}: {missing[-1]['source']} {problem}"
                    raise InputError(f"{told}. Mend the list, or leave such pictures out with --skip-missing")
        if not found:
            raise InputError(f"{pictures}: none of its {len(rows)} pictures could be had; the first: {missing[0]['source']} {missing[0]['reason']}")
        files.write_csv(out / "missing.csv", pd.DataFrame(missing, columns=["line", "source", "reason"]))
        files.write_meta(out / "fetch", None, list=str(pictures), list_sha256=files.sha256(pictures), pictures=len(found), missing=len(missing))
        files.write_csv(out / "metadata.csv", pd.DataFrame(found, columns=COLUMNS))


def _rows(path):
    """The rows of the list as dicts, with the number of their line; `InputError` for a list that does not say what is meant."""
    table = files.read_table(path, ["sha256"], "a list of pictures has the columns sha256 and path or url, and may have caption and concept")
    for name in ("path", "url", "caption", "concept"):
        table[name] = table[name].str.strip() if name in table else ""
    rows, seen = table.assign(line=range(2, len(table) + 2)).to_dict("records"), {}
    if not rows:
        raise InputError(f"{path} lists no picture")
    for row in rows:
        row["sha256"] = row["sha256"].strip().lower()
        where = f"{path}, line {row['line']}"
        if not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
            raise InputError(f"{where}: {row['sha256']!r} is no SHA-256 (64 hexadecimal digits)")
        if row["sha256"] in seen:
            raise InputError(f"{where}: the picture of line {seen[row['sha256']]} again; list each once")
        seen[row["sha256"]] = row["line"]
        if not row["path"] and urllib.parse.urlsplit(row["url"]).scheme not in ("http", "https"):
            raise InputError(f"{where}: needs a path, or a url that begins with http:// or https://, not {row['url']!r}")
    return rows


def _fetch(row, root, folder):
    """(file name below `folder`, "") of one picture, or ("", what is wrong with it)."""
    kept = next((path for path in folder.glob(f"{row['sha256']}.*")), None)
    if kept and files.sha256(kept) == row["sha256"]:
        return kept.name, ""
    try:
        data = _local(row["path"], root) if row["path"] else b""
        if not _is(data, row) and row["url"]:
            data = _download(row["url"])
    except InputError as error:
        return "", str(error)
    if not _is(data, row):
        return "", f"is not the listed picture (its sha256 is {hashlib.sha256(data).hexdigest()})" if data else "is not there"
    suffix = _format(data)
    if not suffix:
        return "", f"is not a picture that can be read ({', '.join(FORMATS)})"
    with files.atomic(folder / f"{row['sha256']}.{suffix}") as temporary:
        temporary.write_bytes(data)
    return f"{row['sha256']}.{suffix}", ""


def _is(data, row):
    return hashlib.sha256(data).hexdigest() == row["sha256"]


def _local(name, root):
    path = files.inside(root, name)
    if not path.is_file():
        return b""
    if path.stat().st_size > LARGEST:
        raise InputError(f"is larger than {LARGEST:,d} bytes")
    return path.read_bytes()


def _download(url):
    """The bytes behind an address; `InputError` says in words why there are none."""
    problem = ""
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": AGENT}), timeout=SECONDS) as answer:
                data = answer.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise InputError(f"is larger than {LARGEST:,d} bytes")
            return data
        except urllib.error.HTTPError as error:
            problem = f"is answered with {error.code} ({error.reason})"
            if error.code < 500:
                break
        except (OSError, ValueError) as error:  # no connection, time-out, a broken answer, an address that is none
            problem = f"cannot be fetched ({getattr(error, 'reason', error)})"
    raise InputError(problem)


def _format(data):
    """The picture's format as a file's suffix, from its content; "" for anything else."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return {"jpeg": "jpg", "tiff": "tif"}.get(picture.format.lower(), picture.format.lower())
    except Exception:  # decoders of broken files raise what they like
        return ""
