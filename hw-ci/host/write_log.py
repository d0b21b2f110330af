"""What a power cut may leave of an NVMe device whose volatile cache was not flushed.

    write_log.py BEFORE LOG FOLDER COUNT SEED

BEFORE is the device's image before the run, LOG what QEMU's blklogwrites wrote during it (the format of Linux's
dm-log-writes: every write, flush and discard, in the order of their completion). Makes COUNT images FOLDER/cut-N.img: all of
them hold everything up to the last flush; of what came after, the first holds nothing, the second all, the others a random
part, some writes of it torn at a sector. Prints a line for each. The images are sparse copies.
"""

import os
import pathlib
import random
import struct
import subprocess
import sys

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512


def entries(log):
    """(sector, bytes or None for a discard, sectors, flags). Ends at the first entry that was not finished."""
    with open(log, "rb") as file:
        magic, version, count, sector_bytes = struct.unpack("<QQQI", file.read(28))
        if (magic, version) != (MAGIC, 1):
            sys.exit(f"{log} is no log of writes, version 1")
        position = sector_bytes
        size = os.fstat(file.fileno()).st_size
        for _ in range(count):
            file.seek(position)
            head = file.read(32)
            if len(head) < 32:
                return
            sector, sectors, flags, _ = struct.unpack("<QQQQ", head)
            position += sector_bytes
            data = None
            if not flags & DISCARD and sectors:
                length = sectors * sector_bytes
                if position + length > size:
                    return
                file.seek(position)
                data = file.read(length)
                position += length
            yield sector * sector_bytes, data, sectors * sector_bytes, flags


def apply(image, entry, kept=None):
    at, data, length, _ = entry
    image.seek(at)
    if data is not None:
        image.write(data if kept is None else data[:kept])
    elif length:
        image.write(bytes(length))


def main():
    before, log, folder, count, seed = sys.argv[1:6]
    folder = pathlib.Path(folder)
    everything = list(entries(log))
    last = max((index for index, entry in enumerate(everything) if entry[3] & (FLUSH | FUA)), default=-1)
    durable, tail = everything[: last + 1], everything[last + 1 :]
    flushes = sum(1 for entry in everything if entry[3] & FLUSH)
    print(f"log: {len(everything)} entries, {flushes} flushes, {len(tail)} after the last of them")
    base = folder / "durable.img"
    subprocess.run(["cp", "--sparse=always", before, base], check=True)
    with open(base, "r+b") as image:
        for entry in durable:
            apply(image, entry)
    chance = random.Random(int(seed))
    for number in range(int(count)):
        path = folder / f"cut-{number}.img"
        subprocess.run(["cp", "--sparse=always", base, path], check=True)
        kept = lost = torn = 0
        with open(path, "r+b") as image:
            for entry in tail:
                sectors = entry[2] // SECTOR
                verdict = {0: "lose", 1: "keep"}.get(number) or chance.choice(["lose", "keep", "keep", "tear"])
                if verdict == "keep":
                    apply(image, entry)
                    kept += 1
                elif verdict == "tear" and entry[1] is not None and sectors > 1:
                    apply(image, entry, chance.randrange(1, sectors) * SECTOR)
                    torn += 1
                else:
                    lost += 1
        print(f"cut-{number}: {kept} kept, {lost} lost, {torn} torn")
    base.unlink()


main()
