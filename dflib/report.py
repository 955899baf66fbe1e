from pathlib import Path


def table_rows(rows):
    return rows[["run_id", "accuracy", "auroc", "params", "file_bytes", "latency_p50_ms", "total_s"]].round(3)


def write():
    return Path("none")
