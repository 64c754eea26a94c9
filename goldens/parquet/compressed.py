"""Writes `zstd.parquet` and `gzip.parquet`: rows of our own, compressed as some files on the hub are.

    python goldens/parquet/compressed.py          # with pyarrow 26.0.1, which made the files that lie here

`crates/model/src/parquet_file.rs`, `crates/eval/src/tasks/files.rs` and `crates/train/src/prompts.rs` read them and expect what `ROWS` has.
"""

from pathlib import Path

import pyarrow
import pyarrow.parquet

ROWS = {
    "prompt": [f"Question {number}: what is {number} times {number}?" for number in range(40)],
    "options": [[str(number), str(number * number)] for number in range(40)],
    "note": [None if number % 2 else "even" for number in range(40)],
}
TYPES = {"prompt": pyarrow.large_string(), "options": pyarrow.list_(pyarrow.string()), "note": pyarrow.string()}

if __name__ == "__main__":
    table = pyarrow.table(ROWS, schema=pyarrow.schema(TYPES))
    for compression, pages in (("zstd", "2.0"), ("gzip", "1.0")):
        path = Path(__file__).with_name(f"{compression}.parquet")
        pyarrow.parquet.write_table(table, path, compression=compression, data_page_version=pages)
