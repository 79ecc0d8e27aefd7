"""Drift correction that looks where it breaks: the shares, what a scan costs, and that a run that was stopped anywhere ends with the same bits."""
import hashlib
from functools import partial

import pytest
import torch

from openworld_forget.core import ForgetError, generator, load_tensors
from openworld_forget.training.adapt import Adaptation, adapt
from openworld_forget.training.fit import Recipe, fit
from openworld_forget.training.methods import METHODS, customize, method, run_key
from openworld_forget.training.regularize import Objective, PlainObjective, Term
from openworld_forget.training.scout import IMAGE, MOST, Pool, Scout, capped, forwards, history, scout_for, shares_of
from openworld_forget.worlds.tiny import tiny_subject, tiny_world

N = 24
RECIPE = Recipe(steps=17, batch=2, lr=5e-3)

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def subject(): return tiny_subject()
@pytest.fixture(scope='module')
def term(base):
    "Latents of noise with captions of their own, as if generated; one caption has two images."
    z = torch.randn(N + 1, *base.latent_shape, generator=generator(0, 'pool'))
    return Term('correction', 10., z, [*(f'a thing {i}' for i in range(N)), 'a thing 0'], teacher=True, stream='generic')

def made(base, subject, term, every=8, kind=Objective, batch=2, steps=None, **kw):
    "An objective with a scout, and what it trains."
    v, params = adapt(base, Adaptation(), subject.token)
    return kind(base, v, subject, [term], batch, 0, scout=scout_for([term], every, batch, 0, steps), **kw), params

def shaken(objective, params):
    "Away from the base, where captions drift."
    with torch.no_grad():
        for k, p in params.items(): p.add_(.05*torch.randn(p.shape, generator=generator(0, 'shake', k)))
    return objective

# shares

@pytest.mark.parametrize('n, most, seed', [(5, .2, 0), (5, .21, 1), (40, .05, 2), (40, .026, 3), (200, .05, 4), (1, 1., 5)])
def test_no_caption_has_more_than_the_cap_and_all_of_it_is_given_out(n, most, seed):
    p = torch.rand(n, generator=generator(seed, 'p'), dtype=torch.float64).pow(8) + 1e-6
    q = capped(p/p.sum(), most)
    assert q.max() <= most and abs(q.sum().item() - 1) < 1e-9
    below = q < most
    if below.any(): assert torch.allclose(q[below]/q[below].sum(), p[below]/p[below].sum())         # the others keep their proportions
    assert q[below].max() <= q[~below].min() if below.any() and (~below).any() else True

def test_the_drift_of_one_caption_alone_never_takes_all():
    d = torch.zeros(200, dtype=torch.float64); d[7] = 1.
    q = shares_of(d)
    assert q[7].item() == MOST and q[0] > 1/400 and q.argmax() == 7

def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ForgetError, match=r'3 captions cannot each have at most 0\.3'): capped(torch.ones(3)/3, .3)
    with pytest.raises(ForgetError, match='share of 0'): capped(torch.tensor([0., 1.]), .9)

# what is seen

def test_the_draws_follow_the_shares_and_two_images_of_a_caption_divide_its_share(term):
    s = Scout(term, 2, 8, 0)
    share = torch.arange(1, N + 1, dtype=torch.float64); s.shares = [share/share.sum()]
    seen = torch.cat([s.choose(torch.zeros(50, dtype=torch.long), k) for k in range(400)])
    often = torch.bincount(seen, minlength=N + 1).double()/len(seen)
    want = (s.shares[0]/torch.bincount(s.of))[s.of]
    assert (often - want).abs().max() < 5*(want/len(seen)).sqrt().max()
    assert torch.equal(s.choose(seen[:9], 3), s.choose(seen[9:18], 3)) and not torch.equal(s.choose(seen[:9], 3), s.choose(seen[:9], 4))

def test_until_the_first_scan_the_draws_are_those_of_the_fixed_correction(base, subject, term):
    of, _ = made(base, subject, term)
    fixed, _ = made(base, subject, term, every=0)
    for k in range(8):
        a, b = of.draw('generic', k), fixed.draw('generic', k)
        assert all(torch.equal(getattr(a, x), getattr(b, x)[:len(a)]) for x in 'xtcze')
    assert torch.equal(of.draw('instance', 3).x, fixed.draw('instance', 3).x)

def test_every_caption_is_looked_at_in_turn(term):
    p = Pool(term, 2, 8, 0)
    assert sorted(torch.cat([p.part(j) for j in range(len(p.parts))]).tolist()) == list(range(N)) and len(p.captions) == N
    assert torch.equal(p.part(0), p.part(len(p.parts))) and p.cost(0) == 2*p.cost(len(p.parts))

def test_a_scan_measures_the_corrections_own_loss(base, subject, term, monkeypatch):
    "On the images, times and noise of a scan, the mean of the drift is the loss by weight."
    import openworld_forget.training.scout as S
    of, params = made(base, subject, term); shaken(of, params)
    which = of.scout.part(0); b = S.points(of, of.scout, which)
    fixed, _ = made(base, subject, term, every=0); fixed.adapted = of.adapted
    monkeypatch.setattr(fixed, 'draw', lambda stream, step, states=None: b); monkeypatch.setattr(fixed, 'count', lambda p, step=None: len(b))
    loss = PlainObjective.__call__(fixed, 0)['correction'].item()
    assert S.drift_of(of, of.scout, which).mean().item()*term.weight == pytest.approx(loss, rel=1e-4)

def test_a_step_is_scanned_once_and_the_first_steps_never(base, subject, term):
    of, params = made(base, subject, term); shaken(of, params)
    for k in (0, 7, 8, 8, 9, 16, 16): of(k)
    assert of.scout.steps == [8, 16] and of.scout.shares[0].std() > 0
    assert [h['step'] for h in history(of.scout)] == [8, 16] and history(of.scout, 1)[1]['top'][0][1] == round(of.scout.shares[1].max().item(), 5)

@pytest.mark.parametrize('forward', [0, 2])
def test_one_forward_for_all_terms_is_a_forward_for_each_with_a_scout(base, subject, term, forward):
    plain, params = made(base, subject, term, kind=PlainObjective, batch=4); shaken(plain, params)
    fast, others = made(base, subject, term, batch=4, forward=forward); shaken(fast, others)
    for step in (8, 9, 15, 16):
        out = []
        for f, ps in ((plain, params), (fast, others)):
            parts = f(step); parts = [parts] if isinstance(parts, dict) else list(parts)
            sum(sum(d.values()) for d in parts).backward()
            out.append(({k: v.item() for d in parts for k, v in d.items()}, {k: p.grad for k, p in ps.items() if p.grad is not None}))
            for p in ps.values(): p.grad = None
        (a, da), (b, db) = out
        assert b == pytest.approx(a, rel=1e-4) and da.keys() == db.keys()
        assert all(torch.allclose(da[k], db[k], rtol=1e-3, atol=1e-5*da[k].abs().max()) for k in da)
    assert torch.equal(plain.scout.shares[-1], fast.scout.shares[-1])

# what it costs

@pytest.mark.parametrize('batch, every, steps', [(4, 24, 250), (1, 24, 800), (2, 8, 100), (8, 48, 250), (4, 24, 20)])
def test_a_scout_costs_what_the_fixed_correction_costs_within_two_percent_and_never_more(base, subject, batch, every, steps):
    wide = Term('correction', 1., torch.zeros(200, *base.latent_shape), [f'thing {i}' for i in range(200)], teacher=True, stream='generic')
    with_, _ = made(base, subject, wide, every, batch=batch, steps=steps); fixed, _ = made(base, subject, wide, 0, batch=batch)
    a, b = forwards(with_, steps), forwards(fixed, steps)
    assert b['scans'] == 0 and .99*b['all'] <= a['all'] <= b['all'] and (a['scans'] > 0) == (steps > every)
    assert b['all'] - a['all'] < IMAGE*max(1, (steps - 1)//every) and a['scans'] < .08*a['all']         # all of it is paid for, and it is little

def test_what_is_said_to_be_asked_is_asked(base, subject, term):
    of, params = made(base, subject, term, batch=1, steps=24)   # one image a step: some steps have none
    seen = dict(base=0, trained=0, scanned=0)
    def hook(kind): return lambda net, args: seen.update({(k := kind if kind == 'base' or torch.is_grad_enabled() else 'scanned'): seen[k] + len(args[0])})
    hooks = [net.register_forward_pre_hook(hook(k)) for k, net in (('base', base.unet), ('trained', of.adapted.unet))]
    try: log, _ = fit(params, of, RECIPE.but(steps=24, batch=1))
    finally:
        for h in hooks: h.remove()
    said = forwards(of, 24)
    assert 3*seen['trained'] == said['trained'] and seen['base'] + seen['scanned'] == said['taught'] + said['scans']
    assert any('correction' not in row for row in log) and sum('correction' in row for row in log) == 24 - sum(of.scout.images(k) == 0 for k in range(24))
    assert any(of.scout.images(k) == 0 for k in range(24)) and of.scout.cost(0) <= IMAGE*sum(1 - of.scout.images(k) for k in range(8))
    assert all(of.scout.images(k) == 1 for k in range(16, 24))                                          # after the last scan nothing is put aside

# resumed

def trained(base, subject, term, path=None, stops=(None,), **kw):
    for stop in stops:
        of, params = made(base, subject, term, **kw)
        log, _ = fit(params, of, RECIPE, path, every=3, until=stop, key='x')
    return {k: p.detach().clone() for k, p in params.items()}, log, of.scout.state() if of.scout else {}

@pytest.fixture(scope='module')
def whole(base, subject, term): return trained(base, subject, term)

def test_stopped_before_at_and_after_a_scan_it_ends_with_the_same_bits(base, subject, term, whole, tmp_path):
    part = trained(base, subject, term, tmp_path/'c.safetensors', (7, 8, 9, 15, 16, None))
    for a, b in ((whole[0], part[0]), (whole[2], part[2])): assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert whole[1] == part[1]
    assert whole[2]['steps'].tolist() == [8, 16] and whole[2]['shares'].std() > 0

def test_without_what_the_checkpoint_carries_it_would_end_elsewhere(base, subject, term, whole, tmp_path, monkeypatch):
    "The control: the shares matter, and it is the checkpoint that brings them back."
    monkeypatch.setattr(Scout, 'restore', lambda self, state: None)
    part = trained(base, subject, term, tmp_path/'c.safetensors', (12, None))[0]
    assert any(not torch.equal(whole[0][k], part[k]) for k in part)

def test_a_training_without_a_scout_keeps_what_it_kept(base, subject, term, tmp_path):
    "Same names in the checkpoint, same weights as an objective that has never heard of scouts."
    files = []
    for i, wrap in enumerate((lambda of: of, lambda of: lambda step: of(step))):        # a plain function carries nothing
        of, params = made(base, subject, term, every=0)
        fit(params, wrap(of), RECIPE.but(steps=4), tmp_path/f'{i}.safetensors', key='x')
        files.append(hashlib.sha256((tmp_path/f'{i}.safetensors').read_bytes()).hexdigest())
    assert files[0] == files[1] and not [k for k in load_tensors(tmp_path/'0.safetensors')[0] if k.startswith('loss/')]

def test_a_scouts_checkpoint_is_not_taken_by_a_loss_that_carries_nothing(base, subject, term, tmp_path):
    trained(base, subject, term, tmp_path/'c.safetensors', (9,))
    of, params = made(base, subject, term, every=0)
    with pytest.raises(ForgetError, match='carries drift, ratio, shares, steps'): fit(params, lambda k: of(k), RECIPE, tmp_path/'c.safetensors', key='x')

def test_a_drift_that_is_not_finite_names_its_caption(base, subject, term):
    of, params = made(base, subject, term)
    with torch.no_grad(): next(iter(params.values())).fill_(float('nan'))
    with pytest.raises(ForgetError, match="scan at step 8 finds a drift that is not finite on 'a thing"): of.look(8)

# the method

def test_the_record_says_what_a_scout_needs():
    m = METHODS['db-scout']
    assert m.plain == METHODS['db-plain'] and m.corrects(METHODS['db-plain']) and (m.scout, m.source, m.prior) == (24, 'generic', 0)
    assert method('db-dc-nopr', source='class+generic', scout=8).scout == 8 and method('db-scout', correction=0.).corrected is False
    for bad, why in ((dict(scout=12), 'multiple of 8'), (dict(source='class'), 'one caption'), (dict(scout=-8), 'scout')):
        with pytest.raises(ForgetError, match=why): method('db-scout', **bad)
    with pytest.raises(ForgetError, match='no drift correction on generic images'): scout_for([], 8, 2, 0)

def test_a_run_with_a_scout_is_another_run_and_its_file_says_where_it_looked(base, subject, term, tmp_path, monkeypatch):
    import openworld_forget.training.methods as R
    monkeypatch.setattr(R, 'terms_of', lambda *a: [term])
    m = method('db-scout', scout=8, recipe=dict(steps=10, batch=2, lr=5e-3))
    assert run_key(base, subject, m) != run_key(base, subject, m.but(scout=0))
    w, log = customize(base, subject, m, path=tmp_path/'a.safetensors')
    meta = load_tensors(tmp_path/'a.safetensors')[1]
    assert [h['step'] for h in meta['scout']] == [8] and meta['scout'][0]['top'][0][0].startswith('a thing') and len(log) == 10
    again, _ = customize(base, subject, m, path=tmp_path/'a.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(w.unet.parameters(), again.unet.parameters()))
    stopping = partial(fit, until=9)
    monkeypatch.setattr(R, 'fit', lambda *a, **kw: (stopping(*a, **kw), (_ for _ in ()).throw(KeyboardInterrupt))[0])
    with pytest.raises(KeyboardInterrupt): customize(base, subject, m, path=tmp_path/'b.safetensors')
    monkeypatch.setattr(R, 'fit', fit)
    resumed, log2 = customize(base, subject, m, path=tmp_path/'b.safetensors')
    assert log == log2 and all(torch.equal(a, b) for a, b in zip(w.unet.parameters(), resumed.unet.parameters()))
    assert load_tensors(tmp_path/'b.safetensors')[1]['scout'] == meta['scout']
