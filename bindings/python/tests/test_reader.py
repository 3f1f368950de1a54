"""The reader: every record once, by name, live and afterwards; files that are no rings are errors."""

import os
import threading
from pathlib import Path

import forgetscope
import numpy as np
import pandas
import pytest
from forgetscope import Error, Reader, Scope, Status


def train(scope: Scope, steps: int, array: np.ndarray) -> None:
    number = scope.register("layer.weight", shape=array.shape, role="query", heads=2, layer=3)
    scope.bind(number, "grad", array)
    with scope.task("a"):
        for step in range(steps):
            scope.step_begin(step)
            scope.gradients_ready()
            scope.step_end()
            # Every step is measured, however fast they are.
            scope.flush()
    scope.flush()


@pytest.fixture
def array() -> np.ndarray:
    return np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3)


def test_frames_name_everything(array):
    with Scope("study", every=1) as scope:
        train(scope, 2, array)
    reader = Reader(scope.ring_path)
    frame = reader.frame("gradient")
    heads = frame[frame.level == "head"]
    assert heads[["step", "head"]].values.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert set(heads.tensor) == {"layer.weight"} and set(heads.role) == {"q"} and set(heads.layer) == {3}
    assert heads.norm.tolist()[:2] == pytest.approx([np.linalg.norm(array[:2]), np.linalg.norm(array[2:])], rel=1e-6)
    (model,) = frame[(frame.level == "model") & (frame.step == 1)].itertuples()
    assert pandas.isna(model.tensor) and model.task == "a" and model.elements == 12
    assert frame.time.is_monotonic_increasing
    assert abs((frame.time.iloc[0] - forgetscope.runs(scope.ring_path.parent)[0].created).total_seconds()) < 60
    (layer,) = frame[(frame.level == "layer") & (frame.step == 1)].itertuples()
    assert layer.layer == 3 and pandas.isna(layer.tensor) and layer.norm == model.norm
    with pytest.raises(Error, match="kind: 'gradeint' is none of step, gradient"):
        reader.frame("gradeint")


def test_every_record_is_read_once(array):
    with Scope(every=1) as scope:
        train(scope, 5, array)
        reader, piecewise = Reader(scope.ring_path), Reader(scope.ring_path)
        whole = reader.read()
        pieces = []
        while (piece := piecewise.read(7)).size:
            assert piece.size <= 7
            pieces.append(piece)
        assert np.concatenate(pieces).tobytes() == whole.tobytes()
        assert reader.read().size == 0 and not reader.closed and reader.lost == 0
        assert whole.size == forgetscope.runs(scope.ring_path.parent)[0].records
    assert reader.read().size == 0 and reader.closed


def test_a_live_run_is_followed_until_it_ends(array):
    scope = Scope(every=1)
    reader = Reader(scope.ring_path)

    def run() -> None:
        train(scope, 20, array)
        scope.close()

    trainer = threading.Thread(target=run)
    trainer.start()
    batches = list(reader.follow(poll=0.001))
    trainer.join()
    assert all(batch.size for batch in batches) and reader.closed
    assert np.concatenate(batches).tobytes() == Reader(scope.ring_path).read().tobytes()
    assert reader.frame("step", np.concatenate(batches)).step.tolist() == list(range(20))


def test_what_was_overwritten_is_counted(array):
    with Scope(every=1, ring_slots=64) as scope:
        reader = Reader(scope.ring_path)
        train(scope, 50, array)
        records = reader.read()
        assert reader.lost > 0
        assert records.size + reader.lost == forgetscope.runs(scope.ring_path.parent)[0].records


def test_runs_are_found(array, tmp_path: Path):
    assert forgetscope.runs(tmp_path) == []
    (tmp_path / "forgetscope-1-0-no.ring").write_bytes(b"no ring" * 1000)
    with Scope("first", every=1, rank=1, world_size=2) as scope:
        train(scope, 1, array)
        (run,) = forgetscope.runs()
        assert (run.path, run.name, run.rank, run.world, run.live) == (scope.ring_path, "first", 1, 2, True)
    assert [run.live for run in forgetscope.runs()] == [False]


def test_files_that_are_no_rings_are_errors(tmp_path: Path):
    with pytest.raises(Error, match="there is no file") as refused:
        Reader(tmp_path / "nothing")
    assert refused.value.status == Status.ERROR_NOT_FOUND
    (tmp_path / "short").write_bytes(b"FGSRING\0")
    with pytest.raises(Error, match="too short"):
        Reader(tmp_path / "short")
    (tmp_path / "other").write_bytes(bytes(8192))
    with pytest.raises(Error, match="first bytes"):
        Reader(tmp_path / "other")
    with pytest.raises(Error, match="FGS_DISABLE"):
        Reader(None)


def test_a_damaged_catalog_is_an_error(array):
    with Scope(every=1) as scope:
        train(scope, 1, array)
    catalog = Reader(scope.ring_path)._ring.header.catalog_offset
    refused = 0
    for place in range(64):
        with scope.ring_path.open("r+b") as file:
            file.seek(catalog + place)
            byte = file.read(1)[0]
            file.seek(catalog + place)
            file.write(bytes([byte ^ 0xFF]))
            file.flush()
            try:
                Reader(scope.ring_path).frame("gradient")
            except Error as error:
                refused += 1
                assert error.status in (Status.ERROR_RING, Status.ERROR_NOT_FOUND)
            file.seek(catalog + place)
            file.write(bytes([byte]))
    assert 8 < refused < 64
    assert not Reader(scope.ring_path).frame("gradient").empty


def test_a_closed_reader_says_so(array):
    with Scope(every=1) as scope, Reader(scope.ring_path) as reader:
        pass
    with pytest.raises(Error, match="the reader was closed"):
        reader.read()
    with pytest.raises(Error, match="the reader was closed"):
        reader.frame("gradient")


def test_files_that_cannot_be_read_stay_closed(array):
    with Scope(every=1) as scope:
        train(scope, 1, array)
    with scope.ring_path.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(Error):
            Reader(scope.ring_path)
    assert len(os.listdir("/proc/self/fd")) == before
