"""What a power cut may leave of an NVMe device whose volatile cache was not flushed.

    write_log.py BEFORE LOG FOLDER COUNT SEED

BEFORE is the device's image before the run, LOG what QEMU's blklogwrites wrote during it (the format of Linux's
dm-log-writes: every write, flush and discard, in the order of their completion). Makes COUNT images FOLDER/end-N.img of the cut
that happened, and COUNT images FOLDER/mid-N.img of cuts just before some flush of the second half of the run was done. Each
holds everything up to the flush before its cut; of what came after that, the first of a kind holds nothing, the second all,
the others a random part, with some writes torn at a sector. Prints a line for each. The images are sparse copies.
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


def make(path, before, durable, tail, rule, chance):
    """Copies `before` and plays `durable` whole and `tail` by `rule`: lose, keep, or any."""
    subprocess.run(["cp", "--sparse=always", before, path], check=True)
    kept = lost = torn = 0
    with open(path, "r+b") as image:
        for entry in durable:
            apply(image, entry)
        for entry in tail:
            sectors = entry[2] // SECTOR
            verdict = rule if rule != "any" else chance.choice(["lose", "keep", "keep", "tear"])
            if verdict == "keep":
                apply(image, entry)
                kept += 1
            elif verdict == "tear" and entry[1] is not None and sectors > 1:
                apply(image, entry, chance.randrange(1, sectors) * SECTOR)
                torn += 1
            else:
                lost += 1
    print(f"{path.stem}: after {len(durable)} entries {kept} kept, {lost} lost, {torn} torn")


def main():
    before, log, folder, count, seed = sys.argv[1:6]
    folder = pathlib.Path(folder)
    everything = list(entries(log))
    flushes = [index for index, entry in enumerate(everything) if entry[3] & FLUSH]
    if len(flushes) < 4:
        sys.exit(f"{len(flushes)} flushes in {len(everything)} entries: too few")
    tail = len(everything) - 1 - flushes[-1]
    print(f"log: {len(everything)} entries, {len(flushes)} flushes, {tail} after the last of them")
    chance = random.Random(int(seed))
    rules = {0: "lose", 1: "keep"}
    middle = [(a, b) for a, b in zip(flushes, flushes[1:]) if a >= len(everything) // 2 and b > a + 1]
    for number in range(int(count)):
        rule = rules.get(number, "any")
        end = flushes[-1] + 1
        make(folder / f"end-{number}.img", before, everything[:end], everything[end:], rule, chance)
        if middle:
            last, cut = chance.choice(middle)
            make(folder / f"mid-{number}.img", before, everything[: last + 1], everything[last + 1 : cut], rule, chance)


main()
