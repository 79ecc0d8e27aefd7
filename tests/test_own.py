"""Regularizers of one's own: a file that repeats a built-in one makes its bits; keys, plans and directions know the file."""
import json
import sys
from dataclasses import replace

import pytest
import torch

from openworld_forget.core import ForgetError, generator, load_tensors
from openworld_forget.study.files import _idle, made_by, read_study
from openworld_forget.study.foresee import trained_as
from openworld_forget.study.fronts import nulls
from openworld_forget.study.plan import plan
from openworld_forget.study.run import Run
from openworld_forget.study.tables import correction_settings
from openworld_forget.training.adapt import adapt, trainable
from openworld_forget.training.directions import at_base
from openworld_forget.training.memory import groups_of, pulled_numbers
from openworld_forget.training.methods import customize, method, own_of, recipe_of, run_key
from openworld_forget.training.own import _installed, _with_helpers, own_module, own_source
from openworld_forget.training.regularize import Objective, PlainObjective
from openworld_forget.training.sequence import customize_sequence
from openworld_forget.worlds.tiny import tiny_subject, tiny_world

FAST = dict(images=2, recipe=dict(steps=5, batch=2, lr=1e-3))
ANCHOR = '''
from openworld_forget.training.regularize import Pull, origins
def regularize(base, world, params, subject, seed, cache):
    start = {k: v.detach() for k, v in origins(base, params, subject.token).items()}
    def distance(step): return sum((p - start[k].to(p.dtype)).square().sum() for k, p in params.items())
    return [Pull('mine', .001, distance)]
'''
BOTH = '''
from openworld_forget.training.regularize import Pull, Term, generated_latents
CAPTIONS = ['a dog', 'a red ball', 'a cup']
def regularize(base, world, params, subject, seed, cache):
    z = generated_latents(base, CAPTIONS, seed, 'mine', cache)
    first = next(iter(params.values()))
    return [Term('hold', 3., z, CAPTIONS, teacher=True), Term('learn', .5, z, CAPTIONS, stream='hold', share=.5),
            Pull('even steps', 1., lambda step: (1 - step % 2)*first.square().sum()), Pull('hold', .5, lambda step: first.sum())]
'''

@pytest.fixture
def own(tmp_path):
    "write(text) -> the path of a regularizer, as a process that has just begun finds it."
    def write(text, name='mine'):
        sys.modules.pop(f'own_{name}', None)
        (tmp_path/f'{name}.py').write_text(text)
        return str(tmp_path/f'{name}.py')
    yield write
    for k in [k for k in sys.modules if k.startswith('own_') or 'of_mine' in k]: del sys.modules[k]

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def subject(): return tiny_subject()

def weights(w): return {k: v for net in (w.unet, w.text_encoder) for k, v in net.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())

def test_a_file_that_repeats_the_anchor_makes_its_bits(base, subject, own):
    f = own(ANCHOR)
    built, log = customize(base, subject, method('db-l2', anchor=.1, **FAST))
    mine, my_log = customize(base, subject, method('db-plain', regularizer=f, regularizer_weight=100., **FAST))
    free, _ = customize(base, subject, method('db-plain', **FAST))
    assert same(weights(built), weights(mine)) and not same(weights(free), weights(mine))
    assert [x['anchor'] for x in log] == [x['mine'] for x in my_log]

def parts(base, subject, f, name='db-plain'):
    "An adapted world, its parameters, and the terms and pulls of a regularizer."
    m = method(name, regularizer=f, **FAST)
    w, params = adapt(base, m.adaptation, subject.token)
    trainable(w, params)
    return w, params, *own_of(base, w, params, subject, m)

@pytest.mark.parametrize('forward', [0, 1])
def test_same_loss_same_gradient_as_the_plain_objective(base, subject, own, forward):
    "Parts of one name are added up, of the weights or not, however many forwards there are."
    w, params, terms, pulls = parts(base, subject, own(BOTH))
    with torch.no_grad():
        for k, p in params.items(): p.add_(.05*torch.randn(p.shape, generator=generator(0, 'shake', k)))
    O = lambda kind, terms, pulls, **kw: kind(base, w, subject, terms, 2, 0, pulls=pulls, **kw)
    plain, fast, alone = O(PlainObjective, terms, pulls), O(Objective, terms, pulls, forward=forward), O(PlainObjective, terms, [])
    for step in (0, 1):
        a, found, b = plain(step), fast(step), {}
        for d in [found] if isinstance(found, dict) else list(found):
            for k, v in d.items(): b[k] = b.get(k, 0.) + v
        assert a.keys() == b.keys() == {'instance', 'hold', 'learn', 'even steps'}
        ga, gb = (torch.autograd.grad(sum(x.values()), list(params.values()), allow_unused=True) for x in (a, b))
        for k in a: assert torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-7), k
        for x, y in zip(ga, gb): assert x is y is None or torch.allclose(x, y, rtol=1e-3, atol=1e-6)
        first = next(iter(params.values()))
        assert torch.allclose(a['even steps'], (1 - step)*first.square().sum())
        assert torch.allclose(a['hold'], alone(step)['hold'] + .5*first.sum()) and min(abs(first.sum()), alone(step)['hold']) > 1e-3

def test_the_weight_multiplies_every_part(base, subject, own):
    f = own(BOTH)
    w, params, *_ = parts(base, subject, f)
    one, three = (own_of(base, w, params, subject, method('db-plain', regularizer=f, regularizer_weight=k)) for k in (1., 3.))
    assert [p.weight for p in one[0] + one[1]] == [3., .5, 1., .5] and [p.weight for p in three[0] + three[1]] == [9., 1.5, 3., 1.5]

TEXT = BOTH.split('def regularize')[0] + '''
def regularize(base, world, params, subject, seed, cache):
    z = base.encode(subject.images)
    said = [subject.instance_prompt]*len(z)
    held = generated_latents(base, CAPTIONS, seed, 'mine', cache)
    return [Term('more', 1., z, said), Term('held', 1., held, CAPTIONS, teacher=True)]
'''

@pytest.mark.parametrize('name', ['cd-plain', 'ti'])
def test_images_to_learn_have_their_captions_read_as_the_subjects_are(base, subject, own, name):
    "Where V* is trained it is the trained one; what the base answers is read by the base."
    w, params, terms, pulls = parts(base, subject, own(TEXT), name)
    row = next(p for k, p in params.items() if k.endswith('row'))
    with torch.no_grad(): row += 1.
    loss = PlainObjective(base, w, subject, terms, 2, 0, pulls=pulls)
    now = w.encode_text([subject.instance_prompt])[0]
    assert torch.allclose(loss.draw('more', 0).c[0], now, atol=1e-5) and not torch.allclose(now, base.encode_text([subject.instance_prompt])[0])
    assert torch.autograd.grad(loss(0)['more'], row)[0].abs().max() > 0 and not loss.draw('held', 0).c.requires_grad

@pytest.mark.parametrize('kind', ['db', 'lora'])
def test_killed_anywhere_it_ends_with_the_same_weights(base, subject, own, tmp_path, monkeypatch, kind):
    from openworld_forget.training import fit
    m, at, whole = method(f'{kind}-plain', regularizer=own(BOTH), **FAST), tmp_path/'a.safetensors', tmp_path/'b.safetensors'
    customize(base, subject, m, path=whole)
    stepped, left = fit._stepped, [3]
    def dies(*a):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return stepped(*a)
    with monkeypatch.context() as p:
        p.setattr(fit, '_stepped', dies)
        with pytest.raises(KeyboardInterrupt): customize(base, subject, m, path=at, every=2)
    assert at.with_suffix('.ckpt.safetensors').exists() and not at.exists()
    customize(base, subject, m, path=at, every=2)
    a, b = load_tensors(at), load_tensors(whole)
    assert same(a[0], b[0]) and a[1] == b[1]

def test_keys_know_the_text_and_the_weight(base, subject, own):
    f = own(ANCHOR)
    m = method('db-plain', regularizer=f)
    first = run_key(base, subject, m), trained_as(base.spec, m), made_by('front', 'openworld_forget.mini.data', *own_source(f))
    assert first[1] == trained_as(base.spec, m.but(name='other')) != trained_as(base.spec, m.but(regularizer_weight=2.))
    assert run_key(base, subject, m.but(regularizer_weight=2.)) != first[0] != run_key(base, subject, method('db-plain'))
    own(ANCHOR + '# a word more\n')
    assert not {run_key(base, subject, m), trained_as(base.spec, m), made_by('front', 'openworld_forget.mini.data', *own_source(f))} & set(first)
    assert trained_as(base.spec, method('db-plain')) == trained_as(base.spec, method('db-plain', regularizer_weight=5.))      # of nothing

def test_a_key_knows_the_file_not_its_spelling_and_what_it_says_it_reads(base, subject, own, tmp_path):
    f = own(ANCHOR)
    m, same = method('db-plain', regularizer=f), method('db-plain', regularizer=str(tmp_path/'x'/'..'/'mine.py'))
    assert m == same and method('db-dc-nopr', regularizer=f).corrects(same)
    first = run_key(base, subject, m)
    sys.modules.pop('own_mine')
    (tmp_path/'moved').mkdir()
    (tmp_path/'moved/mine.py').write_text(ANCHOR)
    assert run_key(base, subject, method('db-plain', regularizer=str(tmp_path/'moved/mine.py'))) == first
    (tmp_path/'captions.txt').write_text('a cup')
    f = own(ANCHOR + "FILES = ['captions.txt']\n")
    m = method('db-plain', regularizer=f)
    first = run_key(base, subject, m)
    (tmp_path/'captions.txt').write_text('a hat')
    assert run_key(base, subject, m) != first

HELPED = 'import sys; from pathlib import Path; sys.path.insert(0, str(Path(__file__).parent)); import json, numpy\n'
HELPERS = {     # what the file imports -> files beside it, the last of which is edited
    'from words_of_mine import WEIGHT': {'words_of_mine.py': 'WEIGHT = 1.'},
    'import words_of_mine': {'words_of_mine.py': 'from more_of_mine import WEIGHT', 'more_of_mine.py': 'WEIGHT = 1.'},
    'from pack_of_mine.words import WEIGHT': {'pack_of_mine/words.py': 'WEIGHT = 1.'},
    'from pack_of_mine import WEIGHT': {'pack_of_mine/__init__.py': 'from .words import WEIGHT', 'pack_of_mine/words.py': 'WEIGHT = 1.'},
}

@pytest.mark.parametrize('line', HELPERS)
def test_helpers_are_part_of_the_key(own, tmp_path, monkeypatch, line):
    "Found by the file itself or on somebody's path; helpers of helpers; packages with and without a file of their own."
    monkeypatch.setattr(sys, 'path', list(sys.path))
    for name, text in HELPERS[line].items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    f = own(HELPED + line + ANCHOR)
    key = own_source(f)
    assert key == own_source(f) != own_source(own(HELPED + ANCHOR))
    f = own(HELPED + line + ANCHOR)
    assert own_source(f) == key
    (tmp_path/name).write_text('WEIGHT = 9.')
    assert own_source(f) != key

def test_libraries_elsewhere_are_not_read_whole(own, tmp_path):
    "Of a user's site, Debian's, or a cluster's modules."
    for f in (tmp_path/'site-packages/torch/__init__.py', tmp_path/'dist-packages/numpy/__init__.py', json.__file__): assert _installed(str(f))
    assert not _installed(str(tmp_path/'words_of_mine.py')) and _with_helpers(own_module(own(ANCHOR)).__name__) == ['own_mine']

def study(tmp_path, f, **more):
    text = 'name: mine\nworld: mini\nconcepts: [cat-noto]\nmethods: [db-plain, mine]\nsteps: [front]\nreports: [methods]\nbudget: smoke\nvariants:\n'
    fields = ', '.join(f'{k}: {v}' for k, v in dict(of='db-plain', regularizer=f, **more).items())
    (tmp_path/'study.yaml').write_text(text + f'  mine: {{{fields}}}\n')
    return read_study(tmp_path/'study.yaml')

def test_a_step_that_was_planned_with_another_text_does_not_run(own, tmp_path):
    f = own(ANCHOR)
    s = study(tmp_path, f)
    steps = {x.params['method']: x for x in plan(s, tmp_path) if x.name == 'front'}
    run = lambda m: Run(**{k: v for k, v in steps[m].params.items() if k in ('study', 'home', 'concept', 'method', 'seed', 'key')})
    assert run('mine').method.regularizer == f and run('db-plain').method.regularizer == ''
    own(ANCHOR + '# a word more\n')
    with pytest.raises(ForgetError, match='edited after this step was planned'): run('mine')
    run('db-plain')
    again = {x.params['method']: x.key for x in plan(s, tmp_path) if x.name == 'front'}
    assert again['db-plain'] == steps['db-plain'].key and again['mine'] != steps['mine'].key

def test_a_study_says_what_is_wrong_before_anything_is_planned(own, tmp_path):
    f = own(ANCHOR)
    with pytest.raises(ForgetError, match='no Python file'): study(tmp_path, f + 'x')
    with pytest.raises(ForgetError, match=r'cannot be loaded.*ZeroDivisionError'): study(tmp_path, own('1/0'))
    with pytest.raises(ForgetError, match='no function `regularize`'): study(tmp_path, own('x = 1'))
    with pytest.raises(ForgetError, match='regularizer_weight has no effect'): study(tmp_path, "''", regularizer_weight=3)
    with pytest.raises(ForgetError, match='trains nothing'): method('ref-append', regularizer=f)
    (tmp_path/'more').mkdir()
    (tmp_path/'more/mine.py').write_text(ANCHOR)
    own(ANCHOR)
    study(tmp_path, f)
    with pytest.raises(ForgetError, match='Two regularizers'): study(tmp_path, tmp_path/'more/mine.py')

def test_it_is_no_null_no_plain_method_and_its_corrected_form_has_it_too(own, tmp_path):
    f = own(ANCHOR)
    s = study(tmp_path, f)
    more = {'mine-50': dict(of='db-plain', regularizer=f, strength=.5), 'db-50': dict(of='db-plain', strength=.5)}
    s = s.but(variants={**s.variants, **more}, methods=['db-50', 'db-plain', 'mine-50', 'mine', 'db-dc-nopr'])
    assert list(nulls(s).values()) == [['db-50', 'db-plain']]
    for order in (['mine', 'db-plain', 'db-dc-nopr'], ['db-dc-nopr', 'db-plain', 'mine']):
        said = correction_settings(s.but(methods=order))
        assert said.none == 'db-plain' and said.labels['mine'] == 'mine' and said.labels['db-plain'] == 'no correction'
    mine, fixed = method('db-plain', regularizer=f), method('db-dc-nopr', regularizer=f)
    assert mine.held and not mine.corrected and not method('db-plain').held
    assert fixed.corrects(mine) and not fixed.corrects(method('db-plain')) and not method('db-dc-nopr').corrects(mine)
    assert not fixed.corrects(mine.but(regularizer_weight=2.))

def test_directions_memory_and_sequences_count_it(base, subject, own):
    m = method('db-plain', regularizer=own(BOTH), **FAST)
    loss, _, _ = at_base(base, subject, m)
    assert [p.name for p in loss.terms] == ['instance', 'hold', 'learn'] and [p.name for p in loss.pulls] == ['even steps', 'hold']
    assert pulled_numbers(m, 100) == 100 and pulled_numbers(method('db-plain'), 100) == 0
    assert groups_of(m, recipe_of(base, m)) == (4,) and groups_of(method('db-plain', **FAST), recipe_of(base, m)) == (2,)
    stage, = customize_sequence(base, [subject], m)
    assert set(stage.log[0]) >= {'instance', 'hold', 'learn', 'even steps'}

def test_half_precision_and_latents_that_lie_elsewhere(own, subject):
    half = tiny_world().to(dtype=torch.bfloat16)
    _, _, terms, _ = parts(half, subject, own(BOTH.replace('return [', 'z = z.double(); return [')))
    assert terms[0].latents.dtype == torch.bfloat16 and terms[0].latents is terms[1].latents
    _, log = customize(half, subject, method('db-plain', regularizer=own(BOTH), **FAST))
    assert all(torch.isfinite(torch.tensor(x['hold'])) for x in log)
    asks = BOTH.replace("return [", """
    import torch
    t, c = torch.tensor([500]), base.encode_text(['a dog'])
    return [Pull('answer', 1., lambda step: world.predict(z[:1], t, c).square().mean()), """)
    _, log = customize(half, subject, method('db-plain', regularizer=own(asks), **FAST))
    assert log[0]['answer'] > 0

def test_a_constant_has_no_slope(base, subject, own):
    "A warm-up, say, with forwards of their own."
    f = own(BOTH.replace("Pull('hold', .5, lambda step: first.sum())", "Pull('late', 1., lambda step: first.square().sum() if step > 2 else 3)"))
    _, log = customize(base, subject, method('db-plain', regularizer=f, images=2, recipe=dict(FAST['recipe'], forward=1)))
    assert [x['late'] for x in log[:3]] == [3.]*3 and log[3]['late'] != 3.

def test_in_a_chain_the_origin_answers_and_draws_and_is_in_the_key(base, subject, own, tmp_path):
    f = own(BOTH.replace("    first =", "    open(cache/'asked', 'a').write(base.key + '\\n')\n    first ="))
    m, second = method('db-plain', regularizer=f, **FAST), replace(subject, name='second', token='y', images=255 - subject.images)
    one, _ = customize_sequence(base, [subject, second], m, cache=tmp_path)
    assert (tmp_path/'asked').read_text().split() == [base.key]*2 != [one.world.key]*2
    assert run_key(one.world, second, m, origin=base) != run_key(one.world, second, m)
    assert not _idle(m, dict(teacher='previous'), True) and _idle(method('db-plain'), dict(teacher='previous'), True) == ['teacher']

def test_in_a_chain_what_training_starts_from_is_what_the_parameters_are(base, subject, own):
    f = own("""
from openworld_forget.training.regularize import Pull
def regularize(base, world, params, subject, seed, cache):
    start = {k: p.detach().clone() for k, p in params.items()}
    return [Pull('mine', .1, lambda step: sum((p - start[k]).square().sum() for k, p in params.items()))]
""")
    subjects = [subject, replace(subject, name='second', token='y', images=255 - subject.images)]
    mine, built = (list(customize_sequence(base, subjects, m)) for m in (method('db-plain', regularizer=f, **FAST), method('db-l2', anchor=.1, **FAST)))
    for a, b in zip(mine, built): assert [x['mine'] for x in a.log] == [x['anchor'] for x in b.log] and same(weights(a.world), weights(b.world))
