"""What was made by other source is not taken for what this source makes: adapters, checkpoints of a training, images, features, scores, second looks; and
what the edited source cannot reach is kept."""
import copy, importlib, json, os, re, shutil, subprocess, sys, threading, time

import pytest
import torch

import openworld_forget.source as source
from openworld_forget.worlds.tiny import tiny_subject
from openworld_forget.core import ForgetError, cached, content_key, load_tensors, save_tensors
from openworld_forget.source import imports, module_of, modules, reached, source_key
from openworld_forget.worlds.generate import generate
from openworld_forget.metrics.judges import Judge
from openworld_forget.training.methods import customize, method, run_key
from openworld_forget.study.records import READS
from openworld_forget.study.run import Run
from openworld_forget.study.plan import plan
from openworld_forget.study.files import made_by, read_study, study_reports
from openworld_forget.study.results import template_code
from openworld_forget.worlds.tiny import tiny_world

from conftest import ROOT

DATA = 'openworld_forget.mini.data'

def package(where):
    "A copy of the package in a folder of its own."
    shutil.copytree(ROOT/'openworld_forget', where/'openworld_forget', ignore=shutil.ignore_patterns('__pycache__')); return where/'openworld_forget'

def edit(folder, module, old, new):
    f = folder/f'{module}.py'; text = f.read_text(encoding='utf-8'); assert text.count(old) >= 1, (module, old)
    f.write_text(text.replace(old, new, 1), encoding='utf-8')

@pytest.fixture
def keyed(tmp_path, monkeypatch):
    "keyed(make, (module, old, new), ...): what `make()` gives when the package's source has these edits."
    count = iter(range(99))
    def run(make, *edits):
        (d := tmp_path/str(next(count))).mkdir(); p = package(d)
        for e in edits: edit(p, *e)
        monkeypatch.setattr(source, '_folder', lambda: p); return make()
    return run

LEGEND = 'study/figures', 'Every figure', 'Each figure'
LOSS = 'training/regularize', "Term('instance', 1.0,", "Term('instance', 7.0,"
IMAGES = 'worlds/generate', '(world.decode(z)*255)', '(world.decode(z)*200)'
LOOK = 'metrics/judges', '.float()/255 - m)/s', '.float()/255 - m)*s'
CHOICE = 'metrics/classify', 'argmin(1), alive', 'argmax(1), alive'
MAKERS = {      # what is kept -> who makes it, as its key has it
    'adapter': ('openworld_forget.training.methods',), 'images': ('openworld_forget.worlds.generate', 'openworld_forget.training.adapt'),
    'features': ('openworld_forget.metrics.judges',),
    **{k: tuple(f'openworld_forget.{m}' for m in ('metrics.classify', 'worlds.world', 'training.adapt', f'study.run:{f}'))
       for k, f in (('scores', 'scores'), ('second look', 'look'))}}

CHANGES = {     # edit -> what is made anew
    'a legend': (LEGEND, ''), 'the loss': (LOSS, 'adapter'), "a judge's preprocessing": (LOOK, 'features'), 'the sampler': (IMAGES, 'adapter, images'),
    'the choice of a class': (CHOICE, 'scores, second look'),
    'how V* enters': (('training/adapt', '(ids == self', '(ids != self'), 'adapter, images, scores, second look'),
    'a comment in the study': (('study/records', 'class Budget', '# a comment\nclass Budget'), ''),
    'the second look': (('study/run', "{'right': s.predictions == c}", "{'right': s.predictions != c}"), 'second look'),
    'the noise': (('worlds/world', 'a*z + s*eps', 'a*z - s*eps'), ', '.join(MAKERS)), 'the seeds': (('core', '>> 1', '>> 2'), ', '.join(MAKERS)),
    'the data of a world': (('mini/data', 'RENDER = 64', 'RENDER = 65'), '')}

@pytest.mark.parametrize('change', CHANGES)
def test_a_key_holds_the_source_that_its_maker_reaches_and_no_other(keyed, change):
    all_keys = lambda: {k: source_key(*v) for k, v in MAKERS.items()}
    e, concerns = CHANGES[change]; a, b = keyed(all_keys), keyed(all_keys, e); assert {k for k in a if a[k] != b[k]} == set(filter(None, concerns.split(', ')))

def test_a_step_is_keyed_by_the_source_that_its_template_reaches(keyed):
    "A legend draws the pages again that show it, and no others; no step is done by other source than the one that its key names."
    all_steps = lambda: {n: made_by(n, DATA) for n in (*READS, *study_reports())}
    a = keyed(all_steps); assert a == keyed(all_steps)
    def changed(*e): b = keyed(all_steps, *e); return {n for n in a if a[n] != b[n]}
    drawn = {n for n in a if 'study.figures' in template_code(n)}
    assert changed(LEGEND) == drawn and not drawn & {'base', 'customize'}
    audits = {'rewound', 'validation'}                          # they audit the runs, with all that an audit reaches
    assert changed(('metrics/texture', 'torch, numpy', 'torch,  numpy')) - audits == {'appearance'}
    assert changed(('metrics/fidelity', 'real_ceiling', 'true_ceiling')) - audits == {'fidelity', 'front', 'sequence'}
    assert changed(('mini/card', 'import', 'import ')) == set()
    assert changed(('mini/data', 'RENDER = 64', 'RENDER = 65')) == set(a)                     # imported by a name in a variable: the world's data
    # who plans, starts, watches and renders steps makes none of their results
    assert changed(*[(f'study/{m}', '"""', '"""Edited. ') for m in ('plan', 'processes', 'engine', 'main', '__main__')]) == set()

@pytest.mark.parametrize('step', READS)
def test_no_step_reaches_what_it_is_not_made_by(step):
    """What a finding says, how a page is rendered, how steps are planned, run and stopped: an edit there runs no step again. Figures are reached by
    steps that draw with them, and by no others; and these take scores, images and features from where they are kept (see the test of the keys)."""
    code = template_code(step)
    own = {m for i in imports(re.sub(r'^[%!].*', '', code, flags=re.M)) if (m := module_of(i))}
    got = {n.removeprefix('openworld_forget.study.') for n in reached(*own)[0]}
    assert not got & {'findings', 'plan', 'processes', 'engine', 'main', '__main__'} and ('figures' in got) == ('study.figures' in code)

@pytest.mark.parametrize('maker', MAKERS)
def test_what_is_kept_does_not_know_how_it_is_drawn(maker):
    assert not {n for n in reached(*MAKERS[maker])[0] if re.search(r'figures|findings|show|engine|main|plan', n.partition(':')[0])}

def test_reached_is_what_a_module_uses():
    "Every function, class and module of this package that stands in a module's namespace comes from a module that it reaches."
    for name in (n for n in modules() if '.' in n and n != 'openworld_forget.mini'):
        m = importlib.import_module(name); texts = reached(name)[0]
        for k, v in vars(m).items():
            if type(v) is type(sys) and hasattr(m, '__path__'): continue                   # a wing has its rooms once somebody entered them
            where = getattr(v, '__module__', None) if callable(v) else getattr(v, '__name__', None) if type(v) is type(sys) else None
            if isinstance(where, str) and where.startswith('openworld_forget.'): assert where in texts, f'{name} has {k} of {where}'
    assert {'torch', 'diffusers'} <= reached('openworld_forget.worlds.generate')[1]
    assert {'efficientnet_lite_pytorch'} <= reached('openworld_forget.metrics.judges')[1]

def test_another_version_of_a_library_is_another_source(monkeypatch):
    a = source_key('openworld_forget.worlds.generate'); monkeypatch.setattr(source, '_library', lambda n: f'{n} 0' if n == 'diffusers' else f'{n} 1')
    b = source_key('openworld_forget.worlds.generate'); monkeypatch.setattr(source, '_library', lambda n: f'{n} 1')
    assert len({a, b, source_key('openworld_forget.worlds.generate')}) == 3

def test_imports_that_hide(keyed, tmp_path):
    "Inside a function, relative, of a module, of everything, by import_module with a text: all are followed."
    where = 'core', 'def seed_for(', '{}def seed_for('
    for line in ('import openworld_forget.metrics.texture', 'from .metrics.texture import *', 'from .metrics import texture',
                 'from openworld_forget.metrics import texture', 'from openworld_forget.metrics.texture import band_energy as e',
                 "import importlib; importlib.import_module('openworld_forget.metrics.texture')"):
        got = keyed(lambda: reached('openworld_forget.core')[0], (where[0], where[1], f'def f():\n    {line}\n\ndef seed_for('))
        assert 'openworld_forget.metrics.texture' in got and 'openworld_forget.metrics.judges' in got, line

def test_source_that_is_edited_under_a_running_process_has_a_key_of_its_own(tmp_path, monkeypatch):
    "Nobody can tell which text runs: what is made then is found by no other process, and what others made is not found."
    p, q = (package(tmp_path/k) for k in 'ab'); monkeypatch.setattr(source, '_folder', lambda: p); a = source_key('openworld_forget.worlds.generate')
    edit(p, *IMAGES[:]); b = source_key('openworld_forget.worlds.generate'); edit(q, *IMAGES)
    monkeypatch.setattr(source, '_folder', lambda: q); c = source_key('openworld_forget.worlds.generate'); assert len({a, b, c}) == 3
    shutil.copy2(ROOT/'openworld_forget/worlds/generate.py', p/'worlds/generate.py'); monkeypatch.setattr(source, '_folder', lambda: p)
    assert source_key('openworld_forget.worlds.generate') == a

# ---------------------------------------------------------------- the case that was tried
SCRIPT = '''
import hashlib, json, sys, torch
from pathlib import Path
import openworld_forget.metrics.judges as judges
from openworld_forget.worlds.tiny import tiny_subject, tiny_world
from openworld_forget.worlds.generate import generate
from openworld_forget.training.methods import customize, method
d = Path(sys.argv[1]); w, s = tiny_world(), tiny_subject(); m = method('db', prior=0., recipe=dict(steps=3, batch=2, lr=1e-2))
class Mean(torch.nn.Module):
    def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(1))
j = judges.Judge('mean', Mean(), lambda x: x.mean((2, 3)), None, (.5,)*3, (.5,)*3)
def hash_of(x): return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
for _ in range(2):
    a, log = customize(w, s, m, path=d/'adapter.safetensors', cache=d)
    images = generate(w, ['a cat'], [0], steps=2, cache=d); f = j.embed(s.images, cache=d)
    files = {p.name: p.stat().st_mtime_ns for p in d.iterdir()}
    weights = torch.cat([p.flatten() for p in a.unet.parameters()])
    print(json.dumps(dict(weights=hash_of(weights), log=log, images=hash_of(images), features=hash_of(f), files=files)))
'''
def test_the_same_path_after_an_edit(tmp_path):
    """Customize, generate, embed; again: all is taken from the disk. After a legend was changed: the same. After the instance loss counts seven times, and
    images and features are made otherwise: nothing of the old is taken."""
    p, out = package(tmp_path), tmp_path/'out'; out.mkdir(); shutil.copy2(ROOT/'settings.ini', tmp_path); (tmp_path/'nbs').mkdir()
    def run():
        r = subprocess.run([sys.executable, '-c', SCRIPT, str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                           env={**os.environ, 'PYTHONPATH': str(tmp_path), 'OWF_HOME': str(tmp_path)})
        assert r.returncode == 0, r.stderr[-3000:]
        return [json.loads(x) for x in r.stdout.splitlines() if x.startswith('{')]
    first, again = run(); assert first == again and len(first['files']) == 4
    edit(p, *LEGEND); assert run() == [first, first]
    for e in (LOSS, IMAGES, LOOK): edit(p, *e)
    new, more = run(); assert new == more and len(new['files']) == 7
    assert all(new[k] != first[k] for k in ('weights', 'log', 'images', 'features'))
    assert new['log'][0]['instance'] == pytest.approx(7*first['log'][0]['instance'], rel=1e-5)
    shutil.copytree(ROOT/'openworld_forget', p, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))            # and back
    old = run()[0]; assert all(old[k] == first[k] for k in ('weights', 'log', 'images', 'features'))

def test_a_checkpoint_of_other_source_starts_the_training_again(tmp_path, monkeypatch, capsys):
    "Killed half way, the source changed: it says so, and ends with the bits of a training that was never stopped."
    import openworld_forget.training.methods as R
    w, s, m = tiny_world(), tiny_subject(), method('db', prior=0., recipe=dict(steps=4, batch=2, lr=1e-2)); fit = R.fit
    def stopped(*a, **kw): fit(*a, **kw, until=2); raise KeyboardInterrupt
    def killed():
        with monkeypatch.context() as k:
            k.setattr(R, 'fit', stopped)
            with pytest.raises(KeyboardInterrupt): customize(w, s, m, path=tmp_path/'a.safetensors', every=1)
        assert load_tensors(tmp_path/'a.ckpt.safetensors')[1]['step'] == 2
    whole = customize(w, s, m)[1]
    killed(); steps = []
    monkeypatch.setattr(R, 'fit', lambda params, loss, *a, **kw: fit(params, lambda k: (steps.append(k), loss(k))[1], *a, **kw))
    assert customize(w, s, m, path=tmp_path/'a.safetensors')[1] == whole and steps == [2, 3]                                # the same source: goes on
    (tmp_path/'a.safetensors').unlink(); monkeypatch.setattr(R, 'fit', fit); killed(); capsys.readouterr()
    monkeypatch.setattr(R, 'source_key', lambda *a: 'another')
    assert customize(w, s, m, path=tmp_path/'a.safetensors')[1] == whole and 'starts again' in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.safetensors']

def test_an_adapter_of_older_source_can_still_be_read(tmp_path, monkeypatch):
    "Only the reuse by path is keyed: the file stays a file."
    import openworld_forget.training.methods as R
    from openworld_forget.training.adapt import load_own
    w, s, m = tiny_world(), tiny_subject(), method('lora', prior=0., recipe=dict(steps=1, batch=1)); a, _ = customize(w, s, m, path=tmp_path/'a.safetensors')
    key = run_key(w, s, m); monkeypatch.setattr(R, 'source_key', lambda *a: 'another'); assert run_key(w, s, m) != key
    b = load_own(w, tmp_path/'a.safetensors'); assert all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), b.unet.parameters()))

# ---------------------------------------------------------------- what else a kept thing depends on
def test_a_word_that_means_something_else_is_another_image(tmp_path):
    "The same weights and the same prompt, but the tokenizer reads the word as another one."
    w = tiny_world(); tok = copy.deepcopy(w.tokenizer); v = w.but(tokenizer=type(tok)(vocab={
        {'a': 'b', 'b': 'a', 'a</w>': 'b</w>', 'b</w>': 'a</w>'}.get(k, k): i for k, i in tok.get_vocab().items()}, merges=[], model_max_length=77))
    assert v.key == w.key and not torch.equal(v.tokens(['a']), w.tokens(['a']))
    x, y = (generate(k, ['a'], [0], steps=2, cache=tmp_path) for k in (w, v)); assert not torch.equal(x, y)
    assert torch.equal(y, generate(w, ['b'], [0], steps=2))

def test_how_much_a_lora_counts_is_part_of_its_world(tmp_path):
    "Twice the alpha, the same tensors: another world, other images."
    from openworld_forget.training.adapt import Adaptation, adapt
    from openworld_forget.core import generator
    w, seen = tiny_world(), []
    for alpha in (4., 8.):
        v, params = adapt(w, Adaptation(kind='lora', alpha=alpha), 'x'); g = generator(0, 'shake')
        with torch.no_grad(): [p.copy_(torch.randn(p.shape, generator=g)) for p in params.values()]
        seen.append((v.but().key, generate(v, ['a cat'], [0], steps=2, cache=tmp_path)))
    assert seen[0][0] != seen[1][0] and not torch.equal(seen[0][1], seen[1][1]) and w.key == tiny_world().key

def test_features_know_the_weights_and_the_preprocessing_of_their_judge(tmp_path):
    net = torch.nn.Linear(1, 1); s = tiny_subject()
    def judge(mean=.5, size=None): return Judge('j', net, lambda x: x.mean((2, 3)), size, (mean,)*3, (.5,)*3)
    a = judge(); b, c = judge(.4), judge(size=32); assert len({a.key, b.key, c.key}) == 3 and judge().key == a.key
    for j in (a, b, c): j.embed(s.images, cache=tmp_path)
    with torch.no_grad(): net.weight.add_(1)
    judge().embed(s.images, cache=tmp_path); assert len(list(tmp_path.iterdir())) == 4

def test_what_several_want_at_once_is_made_once(tmp_path):
    made, f = [], tmp_path/'x.safetensors'
    def make(): made.append(1); time.sleep(.2); return {'x': torch.ones(2)}
    ts = [threading.Thread(target=cached, args=(f, make)) for _ in range(4)]; [t.start() for t in ts]; [t.join() for t in ts]
    assert len(made) == 1 and [p.name for p in tmp_path.iterdir()] == ['x.safetensors']
    def fails(): raise ForgetError('no')
    for _ in range(2):
        with pytest.raises(ForgetError): cached(tmp_path/'y.safetensors', fails)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith('.')] == ['x.safetensors']

def test_a_step_that_was_planned_under_other_source_says_so():
    s = plan(read_study('studies/smoke.yaml'))[0]; kw = dict(study=s.params['study'], home=s.params['home'])
    assert Run(**kw, key=s.key).key == s.key
    with pytest.raises(ForgetError, match='edited after this step was planned'): Run(**kw, key='0'*16 + s.key[16:])

def test_scores_are_kept_by_what_they_depend_on(tmp_path, monkeypatch):
    "The second time nothing is classified; another world, or another classifier, classifies."
    import openworld_forget.study.run as S
    from openworld_forget.metrics.classify import Scores
    from openworld_forget.worlds.data import Benchmark
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    r = Run('studies/smoke.yaml'); w = tiny_world(); r.__dict__['world'] = w; asked = []
    b = Benchmark('b', 'test', ['x', 'y'], tiny_subject().images[:2], torch.tensor([0, 1]), torch.arange(2))
    def fake(*a, **kw): asked.append(1); return Scores(torch.zeros(2, 2, 3), torch.zeros(2, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool), 7)
    monkeypatch.setattr(S, 'classify', fake); counts = []
    def count(world=w, floor=False): r.scores(world, b, floor); counts.append(len(asked))
    other = w.but(); other.unet = copy.deepcopy(w.unet)
    with torch.no_grad(): next(other.unet.parameters()).add_(1)
    count(); count(); count(floor=True); count(other); count(other); monkeypatch.setattr(S, 'source_key', lambda *a: content_key(a, 'edited')); count(); count()
    assert counts == [1, 1, 2, 3, 3, 4, 4]

def test_content_of_large_files_is_read_in_pieces(tmp_path):
    (f := tmp_path/'f').write_bytes(b'a'*(2**24 + 3)); a = content_key(f); f.write_bytes(b'a'*(2**24 + 2) + b'b'); assert content_key(f) != a
    save_tensors(tmp_path/'t.safetensors', {'x': torch.ones(1)}); assert content_key(tmp_path) == content_key(tmp_path)
