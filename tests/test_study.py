"The straight road from a study file to a report, at the smallest size, through papermill; and what happens to wrong input."
import os, shutil, subprocess, sys

import pandas as pd
import pytest

from conftest import ROOT

def study(*args, out, **env):
    return subprocess.run([sys.executable, '-m', 'openworld_forget.study', *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=1500,
                          env={**os.environ, 'OWF_OUTPUTS': str(out), 'OMP_NUM_THREADS': '1', **env}, stdin=subprocess.DEVNULL)

def tables(out): return {p.relative_to(out).as_posix(): pd.read_parquet(p) for p in sorted((out/'smoke').rglob('*.parquet'))}

def test_the_road(tmp_path):
    "One smoke study: complete; reused by a second run; a step that lost its manifest is redone, through Parsl, with the same bits."
    smoke = tmp_path; r = study('studies/smoke.yaml', '--serial', out=smoke); assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    home = smoke/'smoke'; t = tables(smoke)
    assert set(t) == {'smoke/base/base.parquet', *(f'smoke/cat-noto/{m}/seed-0/{n}.parquet' for m in ('db', 'db-dc') for n in ('customize', 'semantic', 'appearance', 'fidelity'))}
    head = pd.read_csv(home/'tables/headline.csv', index_col=0); assert list(head.columns) == ['floor (base)', 'db', 'db-dc'] and not head[['db', 'db-dc']].isna().any().any()
    every = pd.concat(t.values()); assert every.network.notna().all() and (every.n >= 1).mean() > .9 and set(every.world) == {'mini'}
    drift = every[every.measure.isin(['accuracy_drop', 'cdi_tv', 'kid', 'feature_i'])]; assert drift.floor.notna().all()      # every drift has its floor beside it
    page = (home/'report.html').read_text(); assert 'data:image/png;base64' in page and 'injected-parameters' not in page and len(page) > 100_000
    assert (home/'figures/drift-and-fidelity.pdf').stat().st_size > 2000
    before = {p: p.stat().st_mtime_ns for p in smoke.rglob('*.parquet')}
    r = study('studies/smoke.yaml', out=smoke); assert r.returncode == 0 and '10 done already, 0 to run' in r.stdout, r.stdout + r.stderr
    assert before == {p: p.stat().st_mtime_ns for p in smoke.rglob('*.parquet')}
    (smoke/'smoke/cat-noto/db/seed-0/fidelity.json').unlink(); old = tables(smoke)
    r = study('studies/smoke.yaml', '--workers', 1, out=smoke); assert r.returncode == 0 and '1 to run' in r.stdout, r.stdout + r.stderr      # through Parsl this time
    for k, v in tables(smoke).items(): pd.testing.assert_frame_equal(v, old[k], check_exact=True)                                            # the same bits

@pytest.mark.parametrize('text, says', [('name: x\nconcepts: [cat-notto]', 'cat-noto'), ('name: x\nconcepts: [cat-noto]\nmethod: [db]', 'methods'), ('name: x\nconcepts: [cat-noto]\nworld: mimi', 'mini'), ('- a', 'mapping'), ('name: [', 'YAML')])
def test_wrong_study_files(tmp_path, text, says):
    (tmp_path/'s.yaml').write_text(text); r = study(tmp_path/'s.yaml', out=tmp_path)
    assert r.returncode == 2 and says in r.stderr and 'Traceback' not in r.stderr and list(tmp_path.iterdir()) == [tmp_path/'s.yaml']

@pytest.mark.parametrize('damage', ['missing', 'truncated'])
def test_damaged_weights(tmp_path, damage):
    home = tmp_path/'home'; home.mkdir()
    for n in ('settings.ini', 'package-lock.json'): shutil.copy2(ROOT/n, home/n)
    for n in ('nbs', 'openworld_forget', 'node_modules'): (home/n).symlink_to(ROOT/n)
    shutil.copytree(ROOT/'weights', home/'weights'); f = home/'weights/mini/unet/diffusion_pytorch_model.safetensors'
    f.unlink() if damage == 'missing' else f.write_bytes(f.read_bytes()[:5000])
    r = study('studies/smoke.yaml', out=tmp_path/'out', OWF_HOME=str(home))
    assert r.returncode == 2 and 'unet' in r.stderr and 'git checkout weights' in r.stderr and 'Traceback' not in r.stderr, r.stderr[-2000:]
