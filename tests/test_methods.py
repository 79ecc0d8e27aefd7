"""One tester over every method, db, lora, cd in all regularized forms, other adaptations in one, on a random world in Stable Diffusion 1.5's layout: exact,
resumable, and the same on another prediction type and in bfloat16."""
import itertools, os

import pytest
import torch

from openworld_forget.core import ForgetError, generator
from openworld_forget.training.adapt import Adaptation, adapt, load_own
from openworld_forget.worlds.tiny import tiny_subject
from openworld_forget.training.methods import METHODS, MITIGATIONS, customize, method
from openworld_forget.training.regularize import Objective, PlainObjective, Term, correction_terms, prior_term
from openworld_forget.worlds.tiny import tiny_world

FAST = dict(images=2, recipe=dict(steps=4, batch=2, lr=1e-3))
KINDS, FORMS = ('db', 'lora', 'cd'), ('-plain', '', '-dc', '-dc-nopr')
PAPER = [k + f for k, f in itertools.product(KINDS, FORMS)]
MORE = ('oft', 'loha', 'lokr', 'svdiff')           # with all forms, too; tried in the one that has all terms
EVERY = [*PAPER, *MITIGATIONS, 'db-scout']
TRIED = [*EVERY, *(k + '-dc' for k in MORE), 'ti']

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def subject(): return tiny_subject()
@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('regularizer images')

def without_adapters(cache, folder):
    "What training reads, as `cache` has it, in a folder of its own; an adapter from a shared one would be taken, not trained."
    for f in cache.iterdir():
        if not f.name.startswith('adapter-'): os.link(f, folder/f.name)
    return folder

def state(world):
    return {
        f'{n}.{k}': v.clone()
        for n, m in (('text', world.text_encoder), ('vae', world.vae), ('unet', world.unet))
        for k, v in m.state_dict().items()
    }
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def answer(w, prompts=('a x cat', 'a dog', '')):
    g = generator(0, 'probe'); z = torch.randn(len(prompts), *w.latent_shape, generator=g).to(w.dtype)
    with torch.no_grad(): return w.predict(z, torch.tensor([5, 400, 900]), w.encode_text(list(prompts)))

def test_the_forms_are_those_of_the_paper():
    assert set(TRIED) <= set(METHODS) and not METHODS['ti'].prior and not METHODS['ti'].correction
    for m in (METHODS[k + f] for k, f in itertools.product((*KINDS, *MORE), FORMS)):
        assert (m.prior > 0, m.correction > 0) == dict(zip(FORMS, ((False, False), (True, False), (True, True), (False, True))))[
            m.name.removeprefix(m.adaptation.kind)
        ]

def test_the_corrected_form_is_found_by_the_record():
    "Whatever the methods are called: same adaptation, same prior, no correction."
    renamed = [METHODS[n].but(name=f'{i}-x') for i, n in enumerate(PAPER)]
    for m, known in zip(renamed, map(method, PAPER)):
        form = known.name.removeprefix(known.family)
        plain = {'-dc': known.family, '-dc-nopr': f'{known.family}-plain'}.get(form)
        assert (m.family, m.corrected) == (known.adaptation.kind, plain is not None)
        assert m.plain == (METHODS[plain] if plain else None)
        assert [n for n, other in zip(PAPER, renamed) if m.corrects(other)] == ([plain] if plain else [])
    assert method('db-dc', prior=.5).plain is None and method('db-dc', adaptation=Adaptation(text_encoder=True)).plain is None

@pytest.mark.parametrize('name', TRIED)
def test_only_the_named_parameters_change(base, subject, cache, name):
    before = state(base); w, _ = customize(base, subject, method(name, **FAST), cache=cache)
    assert same(before, state(base))                                                                      # the teacher is as it was
    _, params = adapt(base, method(name).adaptation, subject.token)
    after, live = state(w), {k.removeprefix('unet.') for k in params if k.startswith('unet.')}
    old = lambda k: k.removeprefix('unet.').replace('.base_layer', '').replace('.parametrizations.weight.original', '.weight')
    kind = method(name).adaptation.kind
    if kind in ('lora', *MORE):
        new = {k.removeprefix('unet.') for k in after if k.startswith('unet.') and 'unet.' + old(k) not in before}
        assert new == live and all(
            torch.equal(v, before['unet.' + old(k)]) for k, v in after.items() if k.startswith('unet.') and k.removeprefix('unet.') not in live
        )
        zero = dict(lora='lora_B', oft='oft_R', loha='hada_w2_b', lokr='lokr_w1', svdiff='shift')[kind]     # at the start
        assert all(p.abs().max() == 0 for k, p in params.items() if zero in k) and any(v.abs().max() > 0 for k, v in after.items() if zero in k)
    else:
        changed = {k.removeprefix('unet.') for k in after if k.startswith('unet.') and not torch.equal(after[k], before[k])}; assert changed == live
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith('vae.'))
    if kind in ('cd', 'ti'):
        row = w.text_encoder.get_input_embeddings(); others = torch.arange(len(row.base.weight)) != row.index
        assert (
            torch.equal(row.base.weight, base.text_encoder.get_input_embeddings().weight)
            and not torch.equal(row.row, row.base.weight[row.index])
            and others.sum() == len(others) - 1
        )
        rest = {
            k.replace('token_embedding.base.', 'token_embedding.'): v
            for k, v in after.items()
            if k.startswith('text.') and not k.endswith('.row')
        }
        assert same(rest, {k: v for k, v in before.items() if k.startswith('text.')})
    else: assert same({k: v for k, v in after.items() if k.startswith('text.')}, {k: v for k, v in before.items() if k.startswith('text.')})

@pytest.mark.parametrize('name', [*(k + '-dc' for k in (*KINDS, *MORE)), 'ti'])
def test_no_steps_are_the_base(base, subject, cache, name):
    assert torch.equal(answer(customize(base, subject, method(name, images=2, recipe=dict(steps=0)), cache=cache)[0]), answer(base))

@pytest.mark.parametrize('kind, form', [*itertools.product(KINDS, ('-dc', '-dc-nopr')), *((k, '-dc') for k in MORE)])
def test_lambda_zero_is_no_regularizer(base, subject, cache, kind, form):
    a, b = (
        customize(base, subject, method(kind + form, correction=0.0, **FAST), cache=cache)[0],
        customize(base, subject, method(kind + {'-dc': '', '-dc-nopr': '-plain'}[form], **FAST), cache=cache)[0],
    )
    assert same(state(a), state(b))

@pytest.mark.parametrize('name', [*EVERY, *(k + '-plain' for k in MORE), 'ti'])
def test_saved_loaded_resumed(base, subject, cache, tmp_path, tmp_path_factory, name, monkeypatch):
    "What is saved predicts what was trained; a run stopped after every number of steps ends with the same bits."
    import openworld_forget.training.methods as R
    m = method(name, **FAST)
    whole, log = customize(base, subject, m, cache=without_adapters(cache, tmp_path_factory.mktemp('a')), path=tmp_path/'whole.safetensors', every=1)
    own = without_adapters(cache, tmp_path_factory.mktemp('b'))
    assert torch.equal(answer(load_own(base, tmp_path/'whole.safetensors')), answer(whole))
    fit, stop = R.fit, {}
    def stopping(*a, **kw):
        out = fit(*a, **kw, until=stop['at'])
        if stop['at']: raise KeyboardInterrupt
        return out
    monkeypatch.setattr(R, 'fit', stopping)
    for stop['at'] in (1, 3, None):
        try: part, log2 = customize(base, subject, m, cache=own, path=tmp_path/'part.safetensors', every=1)
        except KeyboardInterrupt: assert not (tmp_path/'part.safetensors').exists() and (tmp_path/'part.ckpt.safetensors').exists()
    assert same(state(whole), state(part)) and log == log2 and sorted(p.name for p in tmp_path.iterdir()) == ['part.safetensors', 'whole.safetensors']

@pytest.mark.parametrize('kind', [*KINDS, *MORE])
def test_correction_is_zero_at_the_base(base, subject, cache, kind):
    w, params = adapt(base, Adaptation(kind=kind), subject.token); t = correction_terms(base, subject, 1., 'class', 2, cache=cache)
    loss = Objective(base, w, subject, t, 2, 0)(0)['correction']; loss.backward()
    assert loss < 1e-10 and max(p.grad.abs().max().item() for p in params.values() if p.grad is not None) < 1e-5

@pytest.mark.parametrize('kind', [*KINDS, *MORE])
def test_correction_gradient_is_that_of_finite_differences(subject, kind):
    w = tiny_world()
    base = w.but(**{k: getattr(w, k).double() for k in ('text_encoder', 'vae', 'unet')})
    v, params = adapt(base, Adaptation(kind=kind), subject.token)
    g = generator(0, 'shake')
    with torch.no_grad(): [p.add_(.05*torch.randn(p.shape, generator=g, dtype=torch.float64)) for p in params.values()]
    z = base.encode(subject.images.double()/255); f = Objective(base, v, subject, [Term('correction', 1., z, ['a cat']*3, True)], 2, 0)
    f(0)['correction'].backward()
    d = {k: torch.randn(p.shape, generator=g, dtype=torch.float64) for k, p in params.items()}
    slope = sum((p.grad*d[k]).sum().item() for k, p in params.items() if p.grad is not None)
    def at(h):
        with torch.no_grad(): [p.add_(h*d[k]) for k, p in params.items()]; x = f(0)['correction'].item(); [p.sub_(h*d[k]) for k, p in params.items()]
        return x
    h = 2e-6; assert slope != 0 and abs((at(h) - at(-h))/(2*h) - slope) < 1e-6*abs(slope)

@pytest.mark.parametrize('kind, form', list(itertools.product(KINDS, ('-dc', '-dc-nopr'))))
def test_a_limit_per_forward_changes_memory_only(base, subject, cache, kind, form):
    """The same objective in several forwards: the first step's terms and gradient norm agree to rounding (Adam then magnifies rounding, so
    weights are not compared)."""
    logs = [
        customize(base, subject, method(kind + form, images=2, recipe=dict(steps=1, batch=2, lr=1e-3, forward=n)), cache=cache)[1][0]
        for n in (0, 2)
    ]
    assert logs[0].keys() == logs[1].keys() and all(logs[0][k] == pytest.approx(logs[1][k], rel=1e-4, abs=1e-8) for k in logs[0])

@pytest.mark.parametrize('kind, source', list(itertools.product(KINDS, ('class', 'class+generic', 'instance'))))
def test_one_forward_for_all_terms_is_a_forward_for_each(base, subject, cache, kind, source):
    "The objective that is trained has the losses and the gradients of the one that is written down term by term."
    w, params = adapt(base, Adaptation(kind=kind), subject.token); g = generator(0, 'shake')
    with torch.no_grad(): [p.add_(.05*torch.randn(p.shape, generator=g)) for p in params.values()]
    terms = [prior_term(base, subject, .5, 2, cache=cache), *correction_terms(base, subject, 10., source, 2, cache=cache, share=.5)]
    def step(objective):
        out = objective(9); out = [out] if isinstance(out, dict) else out; sums = {}
        for part in out:
            sum(part.values()).backward()
            for k, v in part.items(): sums[k] = sums.get(k, 0.) + v.item()
        grads = {k: p.grad for k, p in params.items() if p.grad is not None}
        for p in params.values(): p.grad = None
        return sums, grads
    a, da = step(PlainObjective(base, w, subject, terms, 4, 0))
    for forward in (0, 2, 6):
        b, db = step(Objective(base, w, subject, terms, 4, 0, forward))
        assert b == pytest.approx(a, rel=1e-4) and da.keys() == db.keys()
        assert all(torch.allclose(da[k], db[k], rtol=1e-3, atol=1e-5*da[k].abs().max()) for k in da)

def test_answers_ahead_are_answers(base, subject, cache, monkeypatch):
    "What the base answers for eight steps in one forward is what it answers step by step, in any order of the steps."
    import openworld_forget.training.regularize as R
    w, params = adapt(base, Adaptation(), subject.token); g = generator(0, 'shake')
    with torch.no_grad(): [p.add_(.05*torch.randn(p.shape, generator=g)) for p in params.values()]
    terms = correction_terms(base, subject, 1., 'class+generic', 2, cache=cache)
    make = lambda: Objective(base, w, subject, terms, 4, 0)
    f = make()
    order = (0, 7, 8, 17, 3, 8)
    ahead = [f(k)['correction'].item() for k in order]
    assert ahead[5] == ahead[2] and ahead[4] == make()(3)['correction'].item()
    monkeypatch.setattr(R, 'AHEAD', 1); f = make(); assert ahead == pytest.approx([f(k)['correction'].item() for k in order], rel=1e-4)

@pytest.mark.parametrize('term', ['instance', 'prior', 'correction'])
def test_not_finite_stops_and_keeps(base, subject, tmp_path, tmp_path_factory, term, monkeypatch):
    import openworld_forget.training.methods as R
    good = R.Objective
    def bad(*a):
        f = good(*a); return lambda step: {k: v*float('nan') if (k, step) == (term, 2) else v for k, v in f(step).items()}
    monkeypatch.setattr(R, 'Objective', bad); m, f = method('db-dc', **FAST), tmp_path/'a.safetensors'; cache = tmp_path_factory.mktemp('cache')
    with pytest.raises(ForgetError, match=f"'{term}' is nan at step 2"): customize(base, subject, m, cache=cache, path=f, every=1)
    # the checkpoint of step 2 was good
    monkeypatch.setattr(R, 'Objective', good)
    w, _ = customize(base, subject, m, cache=cache, path=f, every=1)
    assert same(state(w), state(customize(base, subject, m, cache=cache)[0]))

def test_the_text_encoder_can_be_trained(base, subject, cache):
    w, _ = customize(base, subject, method('db-dc', adaptation=Adaptation(text_encoder=True), **FAST), cache=cache)
    assert not torch.equal(w.encode_text(['a x cat']), base.encode_text(['a x cat']))

@pytest.mark.parametrize('name, world', list(itertools.product(
    [*(k + '-dc' for k in (*KINDS, *MORE)), 'ti'], (tiny_world('v_prediction'), tiny_world().to(dtype=torch.bfloat16)))),
                         ids=lambda x: x if isinstance(x, str) else f'{x.prediction}-{str(x.dtype)[6:]}')
def test_other_worlds(subject, name, world):
    "The same code on a v-prediction schedule and in bfloat16."
    w, log = customize(world, subject, method(name, **FAST))
    assert len(log) == 4 and w.dtype == world.dtype and torch.isfinite(answer(w).float()).all() and not torch.equal(answer(w), answer(world))
