"The straight road from a study file to a report, at the smallest size, through papermill; and what happens to wrong input."
import json, os, shutil, subprocess, sys, time
from functools import cached_property

import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock

import warm
from conftest import ROOT
from openworld_forget.study.main import main

def study(*args, out, **env):
    cmd = [sys.executable, '-m', 'openworld_forget.study', *map(str, args)]
    return warm.run(cmd, timeout=1500, env={**os.environ, 'OWF_OUTPUTS': str(out), **env})

def tables(out): return {p.relative_to(out).as_posix(): pd.read_parquet(p) for p in sorted((out/'smoke').rglob('*.parquet'))}

class Road:
    "One smoke study, run once for all tests that read what it left."
    def __init__(self, out):
        self.out, self.home = out, out/'smoke'
        with FileLock(f'{out}.lock'):                               # another worker of pytest may need it, too
            if not (said := out/'said.json').is_file():
                out.mkdir()
                r = study('studies/smoke.yaml', '--serial', out=out)
                said.write_text(json.dumps([r.returncode, r.stdout[-3000:] + r.stderr[-3000:]]))
        self.code, self.said = json.loads(said.read_text())
    @cached_property
    def tables(self): return tables(self.out)
    @cached_property
    def every(self): return pd.concat(self.tables.values())
    @cached_property
    def head(self): return pd.read_csv(self.home/'tables/headline.csv')
    @cached_property
    def page(self): return (self.home/'report.html').read_text()

@pytest.fixture(scope='module')
def road(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    r = Road((base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base)/'the road')
    assert r.code == 0, r.said
    return r

@pytest.fixture
def again(road):
    "The road, for a test that runs the study again: no other does so meanwhile."
    with FileLock(f'{road.out}.lock'): yield road

RUNS = [f'cat-noto/{m}/seed-0/{n}' for m in ('db', 'db-dc') for n in ('customize', 'semantic', 'appearance', 'fidelity')]

def test_the_road_leaves_one_table_a_step(road):
    assert set(road.tables) == {f'smoke/{n}.parquet' for n in ('base/base', *RUNS)}

def test_the_headline_has_a_floor_and_a_count_beside_every_value(road):
    head = road.head
    assert set(head.method) == {'db', 'db-dc'} and not head[['value', 'floor', 'n']].isna().any(axis=None) and (head.low <= head.high).sum() > 20

def test_one_image_a_class_is_a_trial_and_no_verdict(road):
    "The page says what it is; no interval where there are too few images."
    lines = (road.home/'headline.txt').read_text().splitlines()
    assert lines[0].startswith('A trial, not a result') and lines[2].split() == ['floor', '(base)', 'db', 'db-dc', 'n', 'measured', 'with']
    drop = road.head[road.head.measure.str.startswith(('accuracy drop', 'worst class', 'gain over the base'))]
    assert drop.low.isna().all() and drop.excess_low.isna().all()

def test_every_number_names_its_network_world_and_count(road):
    every = road.every
    assert every.network.notna().all() and (every.n >= 1).mean() > .9 and set(every.world) == {'mini'}

def test_every_measure_of_the_tables_stands_in_the_registry(road):
    from openworld_forget.metrics.registry import MEASURES
    assert not set(road.every.measure) - set(MEASURES)

def test_every_drift_has_its_floor_beside_it(road):
    every = road.every
    assert every[every.measure.isin(['accuracy_drop', 'cdi_tv', 'kid', 'feature_i'])].floor.notna().all()
    look = every[every.split == 'second look']
    assert {'classes_dropped'} <= set(look.measure) and look.floor[look.measure == 'classes_dropped'].notna().all()

def test_the_report_is_one_page_with_its_pictures_and_without_code(road):
    assert 'data:image/png;base64' in road.page and 'injected-parameters' not in road.page and 'PosixPath' not in road.page and len(road.page) > 100_000
    assert (road.home/'figures/drift-and-fidelity.png').stat().st_size > 2000 and 'base64' in (road.home/'correction.html').read_text()

def test_the_papers_claims_are_told_one_by_one_and_decided_by_no_trial(road):
    claims = pd.read_csv(road.home/'tables/claims.csv')
    assert len(claims) == 14 and claims.verdict.notna().all() and not claims.here.str.contains('nan').any()
    assert 'A trial, not a result' in road.page and 'no verdict: too few images' in road.page
    assert claims.verdict[:6].isin(['not decided', 'not measured']).all()

def test_the_weight_of_the_correction_is_chosen(road):
    choice = pd.read_csv(road.home/'tables/correction.csv').set_index('method')
    assert choice['lambda'].to_dict() == {'db': 0, 'db-dc': 10} and choice.chosen.sum() == 1 and choice.loc['db', 'gain kept'] == 1

def test_a_second_run_reuses_everything(again, monkeypatch, capsys):
    monkeypatch.setenv('OWF_OUTPUTS', str(again.out))
    before = {p: p.stat().st_mtime_ns for p in again.home.rglob('*.parquet')}
    assert main(['studies/smoke.yaml']) == 0 and '12 done already, 0 to run' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in again.home.rglob('*.parquet')}

def test_a_step_that_lost_its_manifest_is_redone_through_parsl_with_the_same_bits(again):
    (again.home/'cat-noto/db/seed-0/fidelity.json').unlink()
    (half := again.home/'cat-noto/db/seed-0/.fidelity-x.parquet.tmp').write_text('cut')
    old = tables(again.out)
    r = study('studies/smoke.yaml', '--workers', 1, out=again.out)
    assert r.returncode == 0 and '1 to run' in r.stdout and not half.exists(), r.stdout + r.stderr
    for k, v in tables(again.out).items(): pd.testing.assert_frame_equal(v, old[k], check_exact=True)

def test_a_checkpoint_from_elsewhere(road, tmp_path):
    """A LoRA file under `checkpoints`: no training, its drift beside the floor, in the report. A second study on the world and budget of the first:
    what the base answered lies in the place that both share, and stays as it is."""
    import torch
    from openworld_forget.core import generator
    from openworld_forget.training.adapt import Adaptation, adapt, save_adapted
    from openworld_forget.worlds.load import load_world
    w, a, g = load_world('mini', 'cpu'), Adaptation(kind='lora'), generator(0, 'elsewhere')
    _, params = adapt(w, a, 'sks')
    with torch.no_grad():
        for p in params.values(): p.copy_(.3*torch.randn(p.shape, generator=g))
    save_adapted(tmp_path/'pytorch_lora_weights.safetensors', w, params, a, 'sks')
    (tmp_path/'s.yaml').write_text(f'name: audit\nbudget: smoke\ncheckpoints: {{mine: {tmp_path}/pytorch_lora_weights.safetensors}}')
    kept = {p.name: p.stat().st_mtime_ns for p in (road.out/'shared').iterdir()}
    r = study(tmp_path/'s.yaml', '--serial', out=road.out)
    assert r.returncode == 0 and '4 to run' in r.stdout, r.stdout[-3000:] + r.stderr[-3000:]
    home = road.out/'audit'
    head = pd.read_csv(home/'tables/headline.csv').set_index('measure')
    assert set(head.method) == {'mine'} and head.value['colour drift, mean'] > head.floor['colour drift, mean']
    assert 'pictures-checkpoints.png' in os.listdir(home/'figures')
    now = {p.name: p.stat().st_mtime_ns for p in (road.out/'shared').iterdir()}
    assert all(now[k] == v for k, v in kept.items())
    pd.testing.assert_frame_equal(*(pd.read_parquet(h/'base/base.parquet').drop(columns='study') for h in (home, road.home)), check_exact=True)

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A definition of a tiny world of random weights with mini's subjects and benchmarks: what a report does with numbers, not which they are."
    from openworld_forget.worlds.tiny import save_world, tiny_world
    save_world(tiny_world(), d := tmp_path_factory.mktemp('small')/'world')
    return dict(name='small', like='mini', source=str(d), token='x')

def papermill(report, folder, numbers, **texts):
    "Execute a report by itself."
    args = [*('-y', json.dumps(numbers)), *(x for k, v in texts.items() for x in ('-r', k, str(v)))]
    r = warm.run([sys.executable, '-m', 'papermill', f'nbs/reports/{report}.ipynb', str(folder/f'{report}.ipynb'), '--cwd', str(ROOT), '-k', 'python3',
                  '--no-progress-bar', *args], env={**os.environ, 'OWF_FIGURES': 'pdf'})
    assert r.returncode == 0, r.stderr[-3000:]

def test_the_budget_report(tmp_path, small):
    "On a base and an adapted world made here: procedures are replayed on measured errors, and none costs more than every class at every step."
    from openworld_forget.training.adapt import Adaptation, adapt, save_adapted
    from openworld_forget.worlds.load import load_world
    w, a = load_world(small, 'cpu'), Adaptation(kind='lora')
    _, params = adapt(w, a, w.spec.token)
    save_adapted(tmp_path/'smoke/cat-noto/db/seed-0/adapter.safetensors', w, params, a, w.spec.token)
    study = yaml.safe_load((ROOT/'studies/smoke.yaml').read_text()) | dict(world=small)
    papermill('budget', tmp_path, dict(steps=4, plans=2, benchmarks=1, reference=False), study=json.dumps(study), home=tmp_path/'smoke', out=tmp_path)
    t = pd.read_csv(tmp_path/'budget.csv')
    full = t[(t.procedure == 'every class') & (t.steps == 4)].set_index('noise')
    assert set(t.noise) == {'shared', 'per image'} and (t.forwards <= t.noise.map(full.forwards)).all()
    assert (t['drop'] == 0).all()                                         # an untrained LoRA changes nothing
    assert (tmp_path/'figures/budget.pdf').stat().st_size > 2000

def test_the_speed_report(tmp_path, small):
    "The benchmark's notebook runs; its ratios are no test's business."
    papermill('speed', tmp_path, dict(steps=1, rounds=1, images=4, world=small), methods='lora-dc,svdiff-plain', out=tmp_path)
    cost = pd.read_csv(tmp_path/'costs.csv').set_index('method')
    assert list(cost.index) == ['db-plain', 'lora-dc', 'svdiff-plain'] and (cost['of db-plain'] > 0).all()
    assert cost.parameters['db-plain'] > cost.parameters['lora-dc'] > cost.parameters['svdiff-plain'] > 1000
    t = pd.read_csv(tmp_path/'speed.csv').set_index('method')
    assert set(t.index) == {'db', 'lora', 'cd'} and (t.filter(like='(ms)') > 0).all(axis=None)
    assert t['peak memory, correction / prior'].between(.8, 3).all() and (tmp_path/'figures/speed.png').exists()

def of_study(out):
    "Processes that carry this run's output folder in their environment."
    for p in psutil.process_iter():
        try:
            if p.pid != os.getpid() and p.environ().get('OWF_OUTPUTS') == str(out) and p.status() != psutil.STATUS_ZOMBIE:
                yield p, ' '.join(p.cmdline())
        except psutil.Error: pass

def test_nothing_outlives_a_killed_study(tmp_path):
    "SIGKILL to the command: its workers and kernels end by themselves; meanwhile a second command on the folder is refused."
    start = lambda: subprocess.Popen(
        [sys.executable, '-m', 'openworld_forget.study', 'studies/smoke.yaml'],
        cwd=ROOT,
        env={**os.environ, 'OWF_OUTPUTS': str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    p = start(); end = time.time() + 180
    while time.time() < end and sum('study.warm' in c for _, c in of_study(tmp_path)) < 3: time.sleep(.2)        # nursery, runner, kernel
    r = study('studies/smoke.yaml', out=tmp_path); assert r.returncode == 2 and 'Another command is running' in r.stderr, r.stdout + r.stderr
    p.kill(); p.wait(); end = time.time() + 120
    while time.time() < end and list(of_study(tmp_path)): time.sleep(.5)
    assert not (left := list(of_study(tmp_path))), left

@pytest.mark.parametrize('text, says', [
    ('name: x\nconcepts: [cat-notto]', 'cat-noto'),
    ('name: x\nconcepts: [cat-noto]\nmethod: [db]', 'methods'),
    ('name: x\nconcepts: [cat-noto]\nmethod_overrides: {lamda: 2}', 'lamda'),
    ('name: x\nconcepts: [cat-noto]\nworld: mimi', 'mini'),
    ('- a', 'mapping'),
    ('name: [', 'YAML'),
])
def test_wrong_study_files(tmp_path, monkeypatch, capsys, text, says):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path)); (tmp_path/'s.yaml').write_text(text)
    assert main([str(tmp_path/'s.yaml')]) == 2 and says in capsys.readouterr().err and list(tmp_path.iterdir()) == [tmp_path/'s.yaml']

@pytest.mark.parametrize('damage', ['missing', 'truncated'])
def test_damaged_weights(tmp_path, damage):
    home = tmp_path/'home'; home.mkdir()
    for n in ('settings.ini', 'package-lock.json'): shutil.copy2(ROOT/n, home/n)
    for n in ('nbs', 'openworld_forget', 'node_modules'): (home/n).symlink_to(ROOT/n)
    shutil.copytree(ROOT/'weights', home/'weights'); f = home/'weights/mini/unet/diffusion_pytorch_model.safetensors'
    f.unlink() if damage == 'missing' else f.write_bytes(f.read_bytes()[:5000])
    r = study('studies/smoke.yaml', out=tmp_path/'out', OWF_HOME=str(home))
    assert r.returncode == 2 and 'unet' in r.stderr and 'git checkout weights' in r.stderr and 'Traceback' not in r.stderr, r.stderr[-2000:]

@pytest.mark.parametrize('damage, says', [('none', 'holds no images'), ('empty', '0 bytes'),
                                          ('truncated', 'not a complete image'), ('huge', 'million are read'), ('text', 'not a complete image'),
                                          ('no class', 'class.txt')])
def test_damaged_pictures(tmp_path, monkeypatch, capsys, damage, says):
    "A user's own subject with a bad picture is refused before anything runs, and names the file."
    from PIL import Image
    f = tmp_path/'data/subjects/my-mug'; f.mkdir(parents=True); (f/'class.txt').write_text('mug')
    for i in range(3): Image.effect_noise((80, 80), 90).save(f/f'{i}.png')
    bad = f/'1.png'; whole = bad.read_bytes()
    if damage == 'none': [p.unlink() for p in f.glob('*.png')]
    elif damage == 'huge': Image.new('1', (9000, 9000)).save(bad)
    elif damage == 'no class': (f/'class.txt').unlink()
    else: bad.write_bytes(dict(empty=b'', truncated=whole[:len(whole)//2], text=b'hello')[damage])
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'out'))
    (tmp_path/'s.yaml').write_text('name: mine\nconcepts: [my-mug]\nbudget: smoke')
    assert main([str(tmp_path/'s.yaml')]) == 2 and says in (e := capsys.readouterr().err) and 'my-mug' in e and not (tmp_path/'out/mine').exists()
