"""Run every notebook of nbs/ as a case of its own, by nbdev's rules (tst_flags, `#| eval: false`, skip_exec).

The templates in nbs/reports need parameters and inputs: they are run through papermill by the tests of the study.
"""
from functools import partial

import nbdev.test
import pytest
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob

CFG = get_config()
NOTEBOOKS = {p.relative_to(CFG.nbs_path).with_suffix('').as_posix(): p for p in sorted(nbglob(CFG.nbs_path, as_path=True))}

@pytest.mark.parametrize('name', [n for n in NOTEBOOKS if not n.startswith('reports/')])
def test_notebook(name, capsys, monkeypatch):
    monkeypatch.setattr(nbdev.test, 'CaptureShell', partial(CaptureShell, mpl_format='png'))        # nobody looks: a quarter of the dots
    ok, _ = nbdev.test.test_nb(NOTEBOOKS[name], skip_flags=CFG.tst_flags.split(), basepath=str(CFG.config_path))
    if not ok: pytest.fail(capsys.readouterr().err, pytrace=False)
