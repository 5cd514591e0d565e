"""Lets our wheel answer for the distribution `liger-kernel`, which downstream packages look up by name.

A second .dist-info folder travels under <name>.data/purelib, since pip refuses two at a wheel's top level. It
has no RECORD of its own: its files stand in ours, so uninstalling liger-kernel-c removes both, and pip will
not replace `liger-kernel` alone, which would leave a mixture of two packages behind.
"""

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARKER = "liger_kernel_c.txt"  # liger_kernel/_upstream.py looks for it


def second_name_files():
    with open(os.path.join(ROOT, "liger_kernel", "_version.py"), encoding="utf-8") as f:
        version = re.search(r'^UPSTREAM_VERSION = "(.*)"', f.read(), re.M)[1]
    metadata = (
        f"Metadata-Version: 2.1\nName: liger-kernel\nVersion: {version}\n"
        "Summary: Stands for the API of Liger Kernel that the installed liger-kernel-c provides.\n"
    )
    note = "This folder belongs to liger-kernel-c. To remove it: pip uninstall liger-kernel-c\n"
    folder = f"liger_kernel-{version}.dist-info"
    return {
        f"{folder}/METADATA": metadata,
        f"{folder}/top_level.txt": "liger_kernel\n",
        f"{folder}/INSTALLER": "liger-kernel-c\n",
        f"{folder}/{MARKER}": note,
    }


def add_second_name(wheel):
    """Rewrites the wheel with the second .dist-info and a RECORD that lists it."""
    with zipfile.ZipFile(wheel) as old:
        names = old.namelist()
        record_name = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/RECORD", n))
        data = record_name.split(".dist-info/")[0] + ".data/purelib/"
        if any(n.startswith(data + "liger_kernel-") for n in names):
            return
        rows = list(csv.reader(io.StringIO(old.read(record_name).decode())))
        with zipfile.ZipFile(wheel + ".part", "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                if info.filename != record_name:
                    new.writestr(info, old.read(info), zipfile.ZIP_DEFLATED)
            for name, text in second_name_files().items():
                content = text.encode()
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                new.writestr(data + name, content)
                rows.insert(-1, [data + name, f"sha256={digest}", str(len(content))])
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(rows)
            new.writestr(record_name, out.getvalue())
    os.replace(wheel + ".part", wheel)


def write_source_tree_metadata(folder, version):
    """Both names for runs from the source tree without installation: tests put `folder` on sys.path."""
    shutil.rmtree(folder, ignore_errors=True)
    ours = f"liger_kernel_c-{version}.dist-info"
    files = second_name_files() | {
        f"{ours}/METADATA": f"Metadata-Version: 2.1\nName: liger-kernel-c\nVersion: {version}\n",
        f"{ours}/top_level.txt": "liger_kernel\n",
    }
    for name, text in files.items():
        os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(text)
