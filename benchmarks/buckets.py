"""What a GET from a bucket costs the client: `python -m benchmarks.buckets`.

Processor time (user and system) of a GET of 100 KB from a store on the loopback, in processes of their own and in
turn: over plain HTTP, by the sources of S3 and GCS, and through cloud-files, as buckets were read before. And the time
to open a source for the first time in a process, imports included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.store import ROOT, serve

_READ = """
import sys, time
from contextlib import closing
from voxelprobe.transport.protocol import Request
from voxelprobe.locations import parse_location
way, url, count, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
begun, used = time.perf_counter(), time.process_time()
if way == "cloud-files":
    from voxelprobe.transport.cloud import CloudFilesSource
    source = CloudFilesSource(url, threads=limit)
else:
    from voxelprobe.transport.sources import open_source
    source = open_source(parse_location(url), threads=limit)
opened = time.perf_counter() - begun, time.process_time() - used
with closing(source), closing(source.open_transfers(limit=limit)) as transfers:
    for part in range(2):  # the first is for connections and imports
        asked = ended = 0
        used = time.process_time()
        while ended < count:
            while asked < count and asked - ended < limit:
                transfers.start(asked, Request(f"chunk-{asked % 50}"))
                asked += 1
            for _, answer in transfers.wait(None):
                assert len(answer.content) == 100_000, answer
                ended += 1
        used = time.process_time() - used
print(used / count * 1e6, *opened)
"""


def main() -> int:
    """Print a table of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--limit", type=int, default=32, help="requests at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bucket/seg").mkdir(parents=True)
        google = folder / "download/storage/v1/b/bucket/o"
        google.mkdir(parents=True)
        for number in range(50):
            content = os.urandom(100_000)
            (folder / f"bucket/seg/chunk-{number}").write_bytes(content)
            (google / f"chunk-{number}").write_bytes(content)
        with serve(folder) as store:
            ways = {"HTTP": ("open", f"{store.url}/bucket/seg"), "S3": ("open", f"s3://{store.url}/bucket/seg"),
                    "GCS": ("open", "gs://bucket"), "cloud-files": ("cloud-files", f"s3://{store.url}/bucket/seg")}
            environment = os.environ | {
                "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "STORAGE_EMULATOR_HOST": store.url}
            print(f"{'':12} {'µs of CPU a GET':>20} {'opened: s, s of CPU':>24}")
            for _ in range(options.rounds):
                for way, (kind, url) in ways.items():
                    command = [sys.executable, "-c", _READ, kind, url, str(options.count), str(options.limit)]
                    said = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
                    cost, opened, used = map(float, said.split())
                    print(f"{way:12} {cost:20.0f} {opened:16.2f} {used:7.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
