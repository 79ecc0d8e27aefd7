"""Many machines: site files, parts of a benchmark, workers and nodes that die. The steps are tiny notebooks, run by the real engine; the slow test
runs a study on a real Slurm cluster of three hosts on this machine (`tools/slurm_here.sh`) and pulls the plug of one."""
import os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace

import nbformat, pandas as pd, pytest, torch

from conftest import ROOT
from openworld_forget.core import ForgetError
from openworld_forget.metrics.classify import shards
from openworld_forget.study import plan as planning, run as running
from openworld_forget.study.engine import LOST, again, read_site
from openworld_forget.study.files import read_study
from openworld_forget.study.main import main
from openworld_forget.study.results import collect
from openworld_forget.study.run import Run
from openworld_forget.worlds.world import provider, spec_of

# --- site files -----------------------------------------------------------------------------------------------------
SITES = {   # file -> (environment, provider, accelerators, workers of a node, at most so many blocks)
    'gpus': (dict(OWF_GPUS='0,2'), 'LocalProvider', ['0', '2'], 2, 1),
    'slurm': (dict(OWF_SLURM_PARTITION='gpu', OWF_SLURM_GPUS='4', OWF_SLURM_NODES='3', OWF_SLURM_OPTIONS='--mem=32G; --qos=long'),
              'SlurmProvider', ['0', '1', '2', '3'], 4, 3),
    'kubernetes': (dict(OWF_KUBE_IMAGE='here/owf:1', OWF_KUBE_GPUS='1', OWF_KUBE_VOLUMES='claim:/work,other:/data', OWF_KUBE_ADDRESS='127.0.0.1'),
                   'KubernetesProvider', ['0'], 1, 4),
}

@pytest.fixture
def settings(monkeypatch):
    "Environment variables; a stand-in for the Kubernetes client, which is not installed; no question to a server for this machine's address."
    from parsl.providers.kubernetes import kube
    api = SimpleNamespace(CoreV1Api=lambda: None)
    monkeypatch.setattr(kube, 'client', api, raising=False)
    monkeypatch.setattr(kube, 'config', SimpleNamespace(load_kube_config=lambda: None), raising=False)
    monkeypatch.setattr(kube, '_kubernetes_enabled', True)
    def to(**env):
        for k in [k for k in os.environ if k.startswith(('OWF_GPUS', 'OWF_SLURM', 'OWF_KUBE'))]: monkeypatch.delenv(k)
        for k, v in env.items(): monkeypatch.setenv(k, v)
    return to

@pytest.mark.parametrize('name', SITES)
def test_a_site_file_loads_and_takes_its_settings_from_the_environment(name, settings):
    env, kind, gpus, workers, blocks = SITES[name]
    settings(**env)
    c = read_site(ROOT/f'sites/{name}.py')
    e = c.executors[0]
    assert (type(e.provider).__name__, e.available_accelerators, e.workers_per_node, e.provider.max_blocks) == (kind, gpus, workers, blocks)
    assert (c.retries, c.retry_handler) == (LOST, again)
    if name == 'slurm':
        text = e.provider.scheduler_options
        for x in ('--no-requeue', '--mem=32G', '--qos=long', '--partition=gpu', '--gpus-per-node=4'): assert f'#SBATCH {x}\n' in text
        assert '--exclusive' not in text and str(Path(sys.executable).parent) in e.provider.worker_init and e.drain_period == 2*3600
    if name == 'kubernetes': assert e.provider.persistent_volumes == [('claim', '/work'), ('other', '/data')]

def test_every_site_file_is_tried(): assert {p.stem for p in (ROOT/'sites').glob('*.py')} == set(SITES)

def test_a_site_that_cannot_be_is_an_error_that_says_why(settings):
    settings(OWF_GPUS='')
    with pytest.raises(ForgetError, match='no GPU that torch sees; name those that it has'): read_site(ROOT/'sites/gpus.py')
    settings()
    with pytest.raises(ForgetError, match='OWF_KUBE_IMAGE'): read_site(ROOT/'sites/kubernetes.py')
    settings(OWF_SLURM_NODES='many')
    with pytest.raises(ForgetError, match=r"slurm.py .*fails: ValueError.*'many'"): read_site(ROOT/'sites/slurm.py')

def test_a_wrong_site_is_one_error_before_anything_starts(tmp_path, monkeypatch, capsys):
    "Named by --site or by OWF_SITE; a study that runs here does not look at it."
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'out'))
    (bad := tmp_path/'bad.py').write_text('x = 1')
    smoke = str(ROOT/'studies/smoke.yaml')
    def said(*argv):
        assert main([smoke, *argv]) == 2 and not (tmp_path/'out').exists()
        return capsys.readouterr().err
    assert 'does not define `config`' in said('--site', str(bad)) and 'cannot be read' in said('--site', str(tmp_path/'none.py'))
    monkeypatch.setenv('OWF_SITE', str(bad))
    assert 'does not define `config`' in said()
    assert main([smoke, '--dry-run', '--serial']) == 0
    with pytest.raises(SystemExit): main([smoke, '--serial', '--site', str(bad)])
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'my results'))
    monkeypatch.delenv('OWF_SITE')
    (ok := tmp_path/'ok.py').write_text('from parsl import Config, HighThroughputExecutor as H\nconfig = Config(executors=[H(address="127.0.0.1")])')
    assert main([smoke, '--site', str(ok)]) == 2 and 'letters, digits' in capsys.readouterr().err and not (tmp_path/'my results').exists()

# --- parts of a benchmark -------------------------------------------------------------------------------------------
def bits(s): return s.errors.nan_to_num(-1).numpy().tobytes(), s.predictions.tolist(), s.alive.tolist(), s.forwards

def test_parts_that_machines_share_make_the_bits_that_one_makes(tmp_path, monkeypatch):
    "Whoever classifies them, in whatever order; merged without another forward; what is missing is classified by who merges."
    def at(name, size):
        monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/name))
        monkeypatch.setattr(running, 'shards', lambda n: shards(n, size))
        return Run('studies/smoke.yaml', key='k').on(world)
    world = Run('studies/smoke.yaml', key='k').world
    run = at('one', 6)
    b = run.benchmark('animals', 'known')
    assert [len(r) for r in running.shards(len(b))] == [6, 6, 4]
    alone = run.scores(world, b)
    run = at('many', 6)
    for part in (2, 0): run.shard_step('animals', 'known', part)            # both noise plans of the base
    asked = []
    with monkeypatch.context() as m:
        classify = running.classify
        m.setattr(running, 'classify', lambda *a, **kw: (asked.append(kw['images']), classify(*a, **kw))[1])
        merged = run.scores(world, b)
        assert asked == [range(6, 12)] and bits(merged) == bits(alone)
        run.scores(world, b)
    assert len(asked) == 1 and len(list((tmp_path/'many/shared').glob('scores-*'))) == 5
    whole = at('whole', 192).scores(world, b)                              # another batch: the same answers, not the same bits
    seen = ~whole.errors.isnan()
    assert whole.predictions.tolist() == alone.predictions.tolist() and torch.allclose(whole.errors[seen], alone.errors[seen], rtol=1e-4)
    with pytest.raises(ForgetError, match='parts 0 to 0: there is no part 1'): run.shard_step('animals', 'known', 1)
    with pytest.raises(ForgetError, match='Unknown benchmark'): run.shard_step('animal', 'known', 0)

def test_a_large_benchmark_is_planned_in_parts(tmp_path, monkeypatch):
    "Each before the step that merges it, and with a share of its cost; where no benchmark is large nothing changes."
    study = read_study(ROOT/'studies/smoke.yaml')
    data = provider(spec_of('mini'))
    monkeypatch.setattr(data, 'class_counts', lambda name, per_class: {str(i): 1 for i in range(16)}, raising=False)
    before = planning.plan(study, tmp_path)
    assert 'shard' not in {s.name for s in before}
    monkeypatch.setattr(planning, 'shards', lambda n: shards(n, 6))
    steps = planning.plan(study, tmp_path)
    parts = [s for s in steps if s.name == 'shard']
    n = 3*len(Run(str(ROOT/'studies/smoke.yaml'), key='k').benchmarks())
    assert len(parts) == 3*n == len({s.folder for s in parts}) == len({s.key for s in parts})          # base, db, db-dc
    assert abs(sum(s.cost for s in steps) - sum(s.cost for s in before) - len(parts)) < 1
    order = {id(s): i for i, s in enumerate(steps)}
    for s in steps:
        assert all(order[id(x)] < order[id(s)] for x in s.needs)
        of = [x for x in s.needs if x.name == 'shard']
        if s.name in ('base', 'semantic'): assert len(of) == n and all(x.folder.parent.parent == s.folder for x in of)
        if s.name == 'shard': assert [x.name for x in s.needs] == (['customize'] if s.params['method'] else [])
    one = parts[0]                                              # what its template does
    run = Run(**{k: v for k, v in one.params.items() if k in ('study', 'home', 'concept', 'method', 'seed', 'key')})
    one.folder.mkdir(parents=True)
    one.notebook.write_text('{}')
    assert not one.done
    run.finish_shard(*(one.params[k] for k in ('benchmark', 'split', 'part')))
    assert one.done

# --- who dies -------------------------------------------------------------------------------------------------------
SITE = '''
from parsl import Config, HighThroughputExecutor
from parsl.providers import LocalProvider
config = Config(strategy='none', executors=[HighThroughputExecutor(label='two', address='127.0.0.1', loopback_address='127.0.0.1', max_workers_per_node=1,
    cores_per_worker=1e-3, heartbeat_period=1, heartbeat_threshold=60, provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1))])
'''
STEPS = '''
import sys
from pathlib import Path
import openworld_forget.study.engine as study
home = Path(sys.argv[1])
lost = study.Step('lost', home/'lost', {})
steps = [lost, study.Step('broken', home/'broken', {}), study.Step('after', home/'after', {}, needs=[lost])]
print(sorted(s.name for s in study.execute(steps, workers=1)))
'''
CELLS = dict(
    lost="""
import os, psutil, time
tries = [int(x) for x in open('tries').read().split()] if os.path.exists('tries') else []
open('tries', 'a').write(f'{os.getpid()}\\n')
if not tries:
    psutil.Process().parent().parent().kill()                   # the worker: of this kernel's papermill
    time.sleep(600)
end = time.monotonic() + 60
while psutil.pid_exists(tries[0]) and psutil.Process(tries[0]).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end: time.sleep(.1)
open('gone', 'w').write(str(time.monotonic() < end))
""",
    broken="open('broken', 'a').write('x')\nraise ValueError('the culprit')",
    after="open('after', 'w').close()",
)

def test_a_step_whose_worker_is_lost_is_begun_again_and_one_that_fails_is_not(tmp_path):
    "The first attempt ends with its worker: no two write one notebook."
    home = tmp_path/'project'
    (home/'nbs/reports').mkdir(parents=True)
    (home/'settings.ini').touch()
    for name, code in CELLS.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), home/f'nbs/reports/{name}.ipynb')
    for name, code in (('site.py', SITE), ('steps.py', STEPS)): (tmp_path/name).write_text(code)
    with tempfile.TemporaryDirectory() as short:
        env = {**os.environ, 'OWF_HOME': str(home), 'OWF_OUTPUTS': str(tmp_path/'out'), 'OWF_SITE': str(tmp_path/'site.py'), 'TMPDIR': short,
               'PYTHONPATH': str(ROOT)}
        said = subprocess.run([sys.executable, tmp_path/'steps.py', tmp_path/'out/demo'], env=env, cwd=tmp_path, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=600)
    assert said.stdout.rstrip().endswith("['broken']") and 'ValueError: the culprit' in said.stdout, said.stdout + said.stderr
    assert len((home/'tries').read_text().split()) == 2 and (home/'gone').read_text() == 'True' and (home/'after').exists()
    assert (home/'broken').read_text() == 'x'

WARM = """
import os, subprocess, sys, time
from pathlib import Path
import psutil
from openworld_forget.study.engine import surroundings
from openworld_forget.study.warm import nursed
ask = "import os, sys; from openworld_forget.study.warm import warm_run; warm_run([sys.executable, '-m', 'stay'], dict(os.environ), os.environ['LOG'])"
here = Path(sys.argv[1])
(here/'stay.py').write_text("import os, time\\n"
    "at = os.environ['LOG']\\nopen(at + '.pid', 'w').write(str(os.getpid()))\\nos.rename(at + '.pid', at + '.began')\\ntime.sleep(600)")
(here/'log').touch()
with nursed([], surroundings(1), here):
    while not Path(os.environ['OWF_NURSERY']).exists(): time.sleep(.05)         # on a busy machine it may be late
    worker = subprocess.Popen([sys.executable, '-c', ask], env={**os.environ, 'LOG': str(here/'log')})
    while not (here/'log.began').exists() and worker.poll() is None: time.sleep(.05)
    step = psutil.Process(int((here/'log.began').read_text()))
    worker.kill()
    worker.wait()
    step.wait(60)
    print('gone')
"""

def test_a_warm_step_ends_with_its_worker(tmp_path):
    "It is a fork of the nursery, not the worker's child."
    with tempfile.TemporaryDirectory() as short:
        said = subprocess.run([sys.executable, '-c', WARM, short], env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{short}'}, cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)
    assert said.stdout == 'gone\n', said.stdout + said.stderr

def test_nodes_on_which_nothing_starts_are_one_error(tmp_path, monkeypatch):
    "A queue may be long, so time does not tell: jobs that end before a worker has registered do."
    from openworld_forget.study import engine
    monkeypatch.setenv('OWF_SITE', 'site.py')
    job = lambda over: SimpleNamespace(terminal=over)
    executor = SimpleNamespace(interchange_proc=SimpleNamespace(poll=lambda: None), connected_managers=list, status_facade={})
    long_ago = time.monotonic() - 1e5
    (tmp_path/'block.stderr').write_text('python: command not found')
    for jobs in ([], [job(False)]*9, [job(True)]*2 + [job(False)]):
        executor.status_facade = dict(enumerate(jobs))
        assert engine.engine_alive(executor, long_ago, tmp_path) is False
    executor.status_facade = dict(enumerate([job(True)]*3))
    with pytest.raises(ForgetError, match=r'no worker on 3 blocks of nodes(?s:.*)command not found'): engine.engine_alive(executor, long_ago, tmp_path)
    executor.connected_managers = lambda: ['node1']
    assert engine.engine_alive(executor, long_ago, tmp_path)

# --- a real cluster -------------------------------------------------------------------------------------------------
STUDY = 'name: cluster\nworld: mini\nconcepts: [cat-noto]\nmethods: [db]\nseeds: [0]\nbudget: smoke\n'

def slurm(*command, **kw): return subprocess.run([ROOT/'tools/slurm_here.sh', *command], cwd=ROOT, stdin=subprocess.DEVNULL, text=True, **kw)

@pytest.fixture
def cluster():
    "Three hosts; its folder lies where all of them see it (each has a /tmp of its own)."
    missing = [c for c in ('slurmctld', 'slurmd', 'munged', 'unshare', 'ip') if not shutil.which(c, path=os.environ['PATH'] + ':/usr/sbin:/sbin')]
    if missing or os.geteuid(): pytest.skip(f'needs root and {", ".join(missing) or "the right to make namespaces"}: see tools/slurm_here.sh')
    folder = Path(tempfile.mkdtemp(prefix='cluster-', dir=ROOT/'outputs'))
    os.environ['SLURM_HERE'] = str(folder/'slurm')
    try:
        up = slurm('up', capture_output=True)
        assert not up.returncode, up.stderr
        yield folder
    finally: slurm('down', capture_output=True)
    shutil.rmtree(folder)                                       # of a test that failed it stays

@pytest.mark.slow
def test_a_study_on_a_cluster_that_loses_a_node_makes_the_tables_of_a_local_run(cluster):
    "Slurm on three hosts; the plug of a node is pulled while it computes; every column of every table is the same, to the bit."
    (cluster/'study.yaml').write_text(STUDY)
    own = ('OWF_', 'SLURM_', 'PYTEST_')
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(own) or k in ('OWF_CACHE', 'SLURM_HERE')}, 'PYTHONPATH': str(ROOT),
           'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '0'}
    command = [sys.executable, '-m', 'openworld_forget.study', cluster/'study.yaml', '--workers', '2']
    log = cluster/'study.log'
    there = {**env, 'OWF_OUTPUTS': str(cluster/'there'), 'OWF_SLURM_NODES': '2', 'OWF_SLURM_WALLTIME': '02:00:00', 'OWF_SLURM_SILENCE': '30'}
    with open(log, 'w') as f:
        p = subprocess.Popen([ROOT/'tools/slurm_here.sh', 'run', *command, '--site', ROOT/'sites/slurm.py'], cwd=ROOT, env=there, stdin=subprocess.DEVNULL,
                             stdout=f, stderr=f)
        begun = cluster/'there/cluster/base/base.ipynb'         # papermill has begun to execute
        end = time.monotonic() + 1200
        while not begun.exists() and p.poll() is None and time.monotonic() < end: time.sleep(.5)
        assert begun.exists() and p.poll() is None, log.read_text()
        time.sleep(3)
        jobs = slurm('run', 'squeue', '-h', '-o', '%i %N %T', capture_output=True).stdout
        node = jobs.split()[1]
        slurm('kill', node, check=True)
        print(f'running: {jobs.split()}; killed {node}')
        code = p.wait(timeout=3000)
    said = log.read_text()
    print(said.replace('\r', '\n')[-3000:])
    lost = next((cluster/'there/cluster/.engine').glob('*/parsl.log')).read_text()
    assert code == 0 and 'FAILED' not in said and 'ManagerLost' in lost
    here = subprocess.run(command, cwd=ROOT, env={**env, 'OWF_OUTPUTS': str(cluster/'here')}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=3000)
    assert not here.returncode, here.stdout + here.stderr
    a, b = (collect(cluster/x/'cluster') for x in ('here', 'there'))
    assert len(a) > 100 and list(a.columns) == list(b.columns)
    for c in a.columns: pd.testing.assert_series_equal(a[c], b[c], check_exact=True)
    print(f'{len(a)} rows, {len(a.columns)} columns: equal')
