"What several studies use is made once, and lies in one place that can be cleared; a place that cannot be written is one error."
import os, sys, time
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot, pandas as pd, pytest
from diffusers import UNet2DConditionModel

import openworld_forget.study.run
import warm
from openworld_forget.core import ForgetError
from openworld_forget.study.files import read_study
from openworld_forget.study.results import template_code
from openworld_forget.study.main import main, prepare
from openworld_forget.study.plan import plan
from openworld_forget.study.results import shared
from openworld_forget.study.run import Run
from openworld_forget.training.methods import terms_of
from openworld_forget.worlds.load import load_world

TINY = '''name: {name}
concepts: [cat-noto]
methods: [{method}]
budget: smoke
overrides: {{benchmarks: 1, splits: [known], prompts: 1, colors: 1, suspects: 1, fresh: 1, sampling_steps: 1, images: 2}}
'''

@pytest.fixture
def forwards(monkeypatch):
    "Images that any denoiser was asked about, in this process."
    asked, plain = [], UNet2DConditionModel.forward
    def counted(self, sample, *a, **kw):
        asked.append(len(sample))
        return plain(self, sample, *a, **kw)
    monkeypatch.setattr(UNet2DConditionModel, 'forward', counted)
    return asked

def step(name, folder, method='db'):
    "The first step, `base`, of a study of this name, as the runner would give it to its template; run in this process."
    (f := folder/f'{name}.yaml').write_text(TINY.format(name=name, method=method))
    s = plan(read_study(f), folder)[0]
    code = template_code('base')
    first = '\n'.join(f'{k} = {v!r}' for k, v in {'study': s.params['study'], 'home': s.params['home'], 'key': s.key, 'budget': ''}.items())
    exec(compile(code.replace(template_code('base', 'parameters'), first, 1), 'base.ipynb', 'exec'), {})
    assert s.folder.joinpath('base.json').is_file()
    return Run(str(f), s.params['home'], 'cat-noto', method)

def ask(run):
    "Whatever else is asked of the base: class images, portraits, a second look."
    b = run.fresh(*run.benchmarks()[0])
    terms_of(run.world, run.subject, run.method, 0, run.cache)
    run.images(run.world, *(x[:2] for x in run.portraits()))
    return [run.look(run.world, b, 0, floor).tolist() for floor in (False, True)]

@pytest.mark.filterwarnings('default')                         # what a notebook's kernel would only say
def test_a_second_study_asks_the_base_nothing(tmp_path, monkeypatch, forwards):
    "Another name, another method, the same world and budget: its step `base` writes its tables, and no denoiser makes a forward."
    world = load_world('mini', 'cpu')
    monkeypatch.setattr(openworld_forget.study.run, 'load_world', lambda spec: world)
    monkeypatch.setattr(matplotlib.pyplot, 'show', lambda: None)
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    seen = ask(step('one', tmp_path))
    assert sum(forwards) > 100
    forwards.clear()
    assert ask(step('two', tmp_path, 'db-dc')) == seen and not forwards
    a, b = (pd.read_parquet(tmp_path/n/'base/base.parquet') for n in ('one', 'two'))
    pd.testing.assert_frame_equal(a.drop(columns='study'), b.drop(columns='study'), check_exact=True)
    kept = sorted(p.name for p in (tmp_path/'one/base').glob('*.safetensors'))
    assert len(kept) == 4 and all((tmp_path/'one/base'/k).read_bytes() == (tmp_path/'two/base'/k).read_bytes() for k in kept)
    # cleared: asked again
    assert main(['--clear-cache']) == 0
    step('three', tmp_path)
    assert sum(forwards) > 50

ONCE = '''
import os, sys, time
from pathlib import Path
import openworld_forget.study.run as R
from openworld_forget.worlds.tiny import tiny_subject, tiny_world
from openworld_forget.worlds.data import Benchmark
import torch
real = R.classify
def slow(*a, **kw):
    print('asked', flush=True)
    time.sleep(1)
    return real(*a, **kw)
R.classify = slow
run = R.Run('studies/smoke.yaml')
w = run.__dict__['world'] = tiny_world()
b = Benchmark('b', 'test', ['x', 'y'], tiny_subject().images[:2], torch.tensor([0, 1]), torch.arange(2))
here = Path(sys.argv[1])
(here/f'ready-{os.getpid()}').touch()
while not (here/'go').exists(): time.sleep(.01)
print(run.scores(w, b).predictions.tolist(), flush=True)
'''

def test_two_processes_that_want_the_same_ask_once(tmp_path):
    "They begin at the same moment; one asks, the other waits and reads."
    env = {**os.environ, 'OWF_OUTPUTS': str(tmp_path)}
    with ThreadPoolExecutor() as both:
        ps = [both.submit(warm.run, [sys.executable, '-c', ONCE, tmp_path], env=env) for _ in range(2)]
        while len(list(tmp_path.glob('ready-*'))) < 2 and not any(p.done() for p in ps): time.sleep(.02)
        (tmp_path/'go').touch()
        ps = [p.result() for p in ps]
    said = [p.stdout.split('\n') for p in ps]
    assert sum(x.count('asked') for x in said) == 1 and said[0][-2] == said[1][-2] and all(p.returncode == 0 for p in ps), ps
    assert [f.suffix for f in (tmp_path/'shared').iterdir()] == ['.safetensors']

def test_a_place_that_cannot_be_written_is_one_error_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    shared().write_text('a file')
    for start in (lambda: prepare(read_study('studies/smoke.yaml'), tmp_path/'smoke', 1, 1.), lambda: Run('studies/smoke.yaml').require()):
        with pytest.raises(ForgetError, match='shared: a file is in the way'): start()

def test_no_study_is_called_like_the_shared_place(tmp_path):
    (tmp_path/'s.yaml').write_text('name: shared\nconcepts: [cat-noto]')
    with pytest.raises(ForgetError, match='taken'): read_study(tmp_path/'s.yaml')

@pytest.mark.parametrize('args', [[], ['--older-than', '3', 'studies/smoke.yaml'], ['--clear-cache', 'studies/smoke.yaml'],
                                  ['--clear-cache', '--older-than', '-1'], ['--clear-cache', '--older-than', 'x']])
def test_what_is_cleared_is_said_clearly_or_not_at_all(args, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code == 2
