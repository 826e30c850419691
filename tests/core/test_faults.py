"""The short form of benchmarks/faults.py: no broken or hostile file ends in anything but a reading or a sentence."""

from vico_spin.benchmarks.faults import FAULTS, kinds, measure


def test_every_reader_takes_what_is_broken_or_names_it():
    verdicts, faults = measure(True, kinds())
    assert faults == [] and not any(verdicts[name] for name in FAULTS)
    assert verdicts["right"] > 50 and verdicts["clear"] > 50, "the corpus holds both"
