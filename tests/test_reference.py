"""Reference attention: by hand, exact when off, the same in every batch, layout, type of numbers and through every way of using a world."""
import itertools, re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from openworld_forget.core import ForgetError, generator, load_tensors, save_tensors
from openworld_forget.metrics.classify import NoisePlan, errors
from openworld_forget.study.fronts import null_of, nulls
from openworld_forget.study.plan import forwards
from openworld_forget.study.records import Study, run_folder
from openworld_forget.study.results import template_code
from openworld_forget.study.step_front import units_of
from openworld_forget.training.adapt import Adaptation, adapt, load_own
from openworld_forget.training.checkpoints import load_adapted
from openworld_forget.training.memory import memory
from openworld_forget.training.methods import customize, method
from openworld_forget.training.reference import MODES, projected, refer, reference_of, reference_tensors, self_attentions, turned
from openworld_forget.training.together import load_together
from openworld_forget.worlds.generate import generate
from openworld_forget.worlds.tiny import tiny_sd2_world, tiny_subject, tiny_world, tiny_xl_world

WORLDS = dict(sd1=tiny_world, v=lambda: tiny_world('v_prediction'), sd2=tiny_sd2_world, xl=tiny_xl_world,
              half=lambda: tiny_world().to(dtype=torch.bfloat16))
REFS = ['ref-append', 'ref-replace', 'ref-adain']
T = [5, 400, 900]

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def subject(): return tiny_subject()

def probe(w, n=3): return torch.randn(n, *w.latent_shape, generator=generator(0, 'probe')).to(w.dtype)

@torch.no_grad()
def answer(w, t=T, prompts=('a x cat', 'a dog', '')):
    return w.predict(probe(w, len(t)), torch.tensor(t), w.encode_text(list(prompts)[:len(t)]))

def on(base, subject, strength=1., **how): return refer(base, reference_tensors(base, subject, 0, strength), **how)
def state(w): return {f'{k}.{n}': v.clone() for k, m in w.networks.items() for n, v in m.state_dict().items()}

@pytest.mark.parametrize('kind, mode', [*(('sd1', m) for m in MODES), ('v', 'append'), ('sd2', 'replace'), ('xl', 'adain'), ('half', 'adain')])
def test_on_it_says_something_else_and_off_the_bits_of_the_base(kind, mode, subject):
    base = WORLDS[kind](); before, at = answer(base), state(base)
    w = on(base, subject, mode=mode)
    x = answer(w); assert torch.isfinite(x).all() and all(not torch.equal(a, b) for a, b in zip(x, before))
    assert torch.equal(answer(turned(w, 0)), before) and torch.equal(answer(on(base, subject, 0., mode=mode)), before)
    assert torch.equal(answer(base), before) and reference_of(base) is None
    assert all(torch.equal(v, at[k]) for k, v in state(base).items()) and len({base.key, w.key, turned(w, .5).key}) == 3
    assert all('_Reading' not in type(m.processor).__name__ for m in self_attentions(base.unet).values()) and not base.unet._forward_pre_hooks

@pytest.mark.parametrize('strength', [1., .25])
def test_a_layer_answers_the_formula(base, subject, strength):
    "The first layer of the pass reads what the base's first layer sees of the noised references."
    tensors, t, name = reference_tensors(base, subject, 3, strength), 400, next(iter(self_attentions(base.unet)))
    got, read = {}, {}
    w = refer(base, tensors)
    layer, own = w.unet.get_submodule(name), base.unet.get_submodule(name)
    hook = layer.register_forward_hook(lambda m, args, kw, y: got.update(x=args[0], y=y), with_kwargs=True)
    see = own.register_forward_hook(lambda m, args, kw, y: read.update(x=args[0]), with_kwargs=True)
    answer(w, [t]*3)
    a = base.scheduler.alphas_cumprod[t]
    with torch.no_grad():
        base.predict(a.sqrt()*tensors['latents'] + (1 - a).sqrt()*tensors['noise'], torch.tensor([t]*3),
                     base.encode_text([subject.class_prompt]).expand(3, -1, -1))
        hook.remove(); see.remove()
        (q, k, v), (_, kr, vr) = projected(own, got['x']), projected(own, read['x'])            # (3, heads, n, d)
        for i in range(3):
            for h in range(own.heads):
                K, V = torch.cat([k[i, h], *kr[:, h]]), torch.cat([v[i, h], *vr[:, h]])         # (n + 3n, d)
                e = (q[i, h] @ K.T/q.shape[-1]**.5).exp()*torch.tensor([1.]*k.shape[2] + [strength]*3*k.shape[2])
                q[i, h] = e/e.sum(1, keepdim=True) @ V
        want = own.to_out[0](q.transpose(1, 2).flatten(2))
    assert torch.allclose(got['y'], want, atol=1e-5), (got['y'] - want).abs().max()

def test_replaced_keys_are_the_references_alone(base, subject):
    w, name = on(base, subject, mode='replace'), next(iter(self_attentions(base.unet)))
    answer(w, [400]*3)
    _, k, v = reference_of(w).seen_at[400][name]
    q = torch.randn(2, len(k), 5, k.shape[-1], generator=generator(0, 'q'))
    said = {}
    layer = w.unet.get_submodule(name)
    x = torch.randn(2, 5, layer.to_q.in_features, generator=generator(0, 'x'))
    with torch.no_grad():
        q, *_ = projected(layer, x)
        said = layer.to_out[0](F.scaled_dot_product_attention(q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)).transpose(1, 2).flatten(2))
        assert torch.allclose(layer(x), said, atol=1e-6)

@pytest.mark.parametrize('kind, mode', [*(('sd1', m) for m in MODES), ('xl', 'adain')])
def test_a_batch_of_mixed_timesteps_is_its_images_one_by_one(kind, mode, subject):
    base = WORLDS[kind](); t = [5, 900, 400, 5, 960]
    w = on(base, subject, .7, mode=mode, from_step=.05)                                     # at 960 it is not read
    c, z = base.encode_text(['a', 'b', 'c', 'd', 'e']), probe(base, 5)
    with torch.no_grad():
        together = w.predict(z, torch.tensor(t), c)
        one = torch.cat([w.predict(z[i:i+1], torch.tensor(t[i:i+1]), c[i:i+1]) for i in range(5)])
        off = base.predict(z[4:], torch.tensor(t[4:]), c[4:])
        plain = base.predict(z[3:4], torch.tensor(t[3:4]), c[3:4])
    assert torch.allclose(together, one, atol=1e-5) and torch.equal(one[4:], off) and not torch.allclose(one[3:4], plain)

def test_layers_and_noise_levels_that_are_left_out_are_the_bases(base, subject):
    before, last, late = answer(base), list(self_attentions(base.unet))[-1], answer(on(base, subject, from_step=.5))
    assert torch.allclose(late[2], before[2], atol=1e-6) and not torch.allclose(late[0], before[0])
    assert not torch.allclose(answer(on(base, subject))[2], before[2])
    w = on(base, subject, from_layer=.99); answer(w)
    assert list(reference_of(w).seen_at[5]) == [last]
    order = list(self_attentions(base.unet)); assert [k.split('.')[0] for k in order] == sorted(k.split('.')[0] for k in order)

def test_one_reference_is_kept_for_a_timestep_and_asked_once(base, subject):
    w = on(base, subject); r = reference_of(w)
    x = answer(w); assert r.forwards == 9 and set(r.seen_at) == set(T)
    assert torch.equal(answer(w), x) and r.forwards == 9
    with pytest.MonkeyPatch.context() as m:
        m.setattr('openworld_forget.training.reference.KEPT', 0); answer(w, [7]*3); assert set(r.seen_at) == {7}
    assert torch.equal(answer(w), x) and r.forwards == 21

def test_moved_to_another_type_of_numbers_it_is_seen_anew(subject):
    w = on(tiny_world(), subject); x = answer(w)
    y = answer(w.to(dtype=torch.bfloat16)); assert y.dtype == torch.bfloat16 and (x - y).abs().max() < .1*x.abs().max()

@pytest.mark.parametrize('name', REFS)
def test_a_method_is_saved_loaded_and_rewound_to_the_bit(base, subject, tmp_path, name):
    before, at = answer(base), state(base)
    w, log = customize(base, subject, method(name), seed=1, path=tmp_path/'a.safetensors')
    x = answer(w); u = load_own(base, tmp_path/'a.safetensors')
    assert not log and torch.equal(answer(u), x) and u.key == w.key and not any(p.requires_grad for p in w.unet.parameters())
    again, _ = customize(base, subject, method(name), seed=1, path=tmp_path/'a.safetensors'); assert torch.equal(answer(again), x)
    off, _ = customize(base, subject, method(name, strength=0), seed=1, path=tmp_path/'b.safetensors')
    assert torch.equal(answer(off), before) and torch.equal(answer(load_own(base, tmp_path/'b.safetensors')), before)
    assert torch.equal(answer(base), before) and all(torch.equal(v, at[k]) for k, v in state(base).items())
    assert set(load_tensors(tmp_path/'a.safetensors')[0]) == {f'unet.reference.{k}' for k in ('latents', 'noise', 'text', 'strength')}

def test_half_of_a_file_is_the_method_at_half_strength_and_another_seed_has_other_noise(base, subject, tmp_path):
    (whole, _), (half, _), (other, _) = (customize(base, subject, method('ref-append', strength=s), seed=k, path=tmp_path/f'{s}-{k}.safetensors')
                                         for s, k in ((1., 1), (.5, 1), (1., 2)))
    assert torch.equal(answer(load_adapted(base, tmp_path/'1.0-1.safetensors', strength=.5)), answer(half))
    assert not torch.equal(answer(other), answer(whole)) and other.key != whole.key
    with pytest.raises(ForgetError, match='strength 2'): load_adapted(base, tmp_path/'1.0-1.safetensors', strength=2)

@pytest.mark.parametrize('kind', ['sd1', 'xl'])
def test_classifier_and_sampler_read_it(kind, subject):
    "In the classifier cross-attention answers from a table: the pass must not read it."
    base = WORLDS[kind](); w = on(base, subject); plan, prompts = NoisePlan(steps=3), ['a cat', 'a dog', 'a x cat']
    z = base.encode(subject.images)
    e, f = errors(w, z, prompts, plan, batch=7), errors(base, z, prompts, plan)
    eps, t = plan.noise(base), plan.timesteps(base)
    for i in range(3):
        for c, p in enumerate(prompts):
            with torch.no_grad(): out = w.predict(base.add_noise(z[i:i+1], eps[2:], t[2:]), t[2:], base.encode_text([p]))
            assert torch.allclose((out - eps[2:]).square().mean(), e[i, c, 2], rtol=1e-4)
    assert (e - f).abs().min() > 0 and torch.equal(errors(turned(w, 0), z, prompts, plan), f)
    on_, off = (generate(x, prompts, [0, 1, 2], steps=2, guidance=4.) for x in (w, turned(w, 0)))
    assert torch.equal(off, generate(base, prompts, [0, 1, 2], steps=2, guidance=4.)) and not torch.equal(on_, off)
    one = generate(w, prompts[1:2], [1], steps=2, guidance=4.); assert (one.int() - on_[1:2].int()).abs().max() <= 1
    assert torch.equal(errors(w, z, prompts, plan, batch=7), e)                             # and what it keeps is not changed by use

def test_a_subject_of_one_image_and_of_its_first_images(base, subject):
    one, _ = customize(base, subject, method('ref-append', instances=1)); assert len(reference_of(one).latents) == 1
    assert not torch.equal(answer(one), answer(customize(base, subject, method('ref-append'))[0]))

@pytest.mark.parametrize('why, bad', {
    'mode of a reference': lambda b, s: on(b, s, mode='apend'),
    'from_step: 1': lambda b, s: on(b, s, from_step=1),
    'from_layer: -0.5': lambda b, s: on(b, s, from_layer=-.5),
    'strength 2': lambda b, s: on(b, s, 2.),
    'strength -1': lambda b, s: turned(on(b, s), -1),
    'strength 1.5': lambda b, s: turned(on(b, s, .5), 1.5),
    'refers to images already': lambda b, s: on(on(b, s), s),
    'is not trained': lambda b, s: adapt(on(b, s), Adaptation(kind='lora'), 'x'),
    'trains nothing': lambda b, s: adapt(b, Adaptation(kind='reference'), 'x'),
    'one image or more': lambda b, s: refer(b, {k: v[:0] if k in ('latents', 'noise') else v for k, v in reference_tensors(b, s).items()}),
    'non-finite': lambda b, s: refer(b, {k: v/0 if k == 'latents' else v for k, v in reference_tensors(b, s).items()}),
    'The text of the reference has shape': lambda b, s: refer(tiny_xl_world(), reference_tensors(b, s)),
    "'noise'": lambda b, s: refer(b, {k: v for k, v in reference_tensors(b, s).items() if k != 'noise'}),
    'has no reference': lambda b, s: turned(b, .5),
    'prior: reference trains nothing': lambda b, s: method('ref-append', prior=1.),
    'correction: reference trains nothing': lambda b, s: method('ref-adain', correction=1.),
    'preference: reference trains nothing': lambda b, s: method('ref-adain', preference=1.),
    'recipe: reference trains nothing': lambda b, s: method('ref-adain', recipe=dict(steps=3)),
    'anchor': lambda b, s: method('ref-append', anchor=1.),
    'lies between 0 and 1': lambda b, s: method('ref-append', strength=3),
    'belongs to reference': lambda b, s: method('db', adaptation=dict(mode='adain')),
}.items())
def test_what_is_no_reference_is_refused_with_its_reason(base, subject, why, bad):
    with pytest.raises(ForgetError, match=why): bad(base, subject)

def test_a_damaged_file_and_one_of_another_base_are_refused(base, subject, tmp_path):
    customize(base, subject, method('ref-append'), path=(f := tmp_path/'a.safetensors'))
    tensors, meta = load_tensors(f)
    save_tensors(g := tmp_path/'b.safetensors', {k: v for k, v in tensors.items() if 'noise' not in k}, meta)
    with pytest.raises(ForgetError, match=r"b\.safetensors.*'noise'"): load_own(base, g)
    with pytest.raises(ForgetError, match='another base'): load_own(tiny_world(seed=1), f)
    with pytest.raises(ForgetError, match='Use it alone'): load_together(base, [(f, 1.), (f, 1.)])

def test_a_study_knows_what_it_costs_and_what_it_is_held_against():
    refs = {'ref-50': dict(of='ref-append', strength=.5)}
    s = Study(name='s', concepts=['cat-noto'], steps=['front'], reports=['methods'], overrides=dict(steps=7),
              methods=['db-50', 'db-plain', 'lora-plain', 'ref-50', *REFS], variants={'db-50': dict(of='db-plain', strength=.5), **refs})
    assert s.method('ref-append').recipe == {} and s.method('db-plain').recipe == dict(steps=7)
    assert list(nulls(s)) == ['db-plain'] and null_of(s, 'ref-replace', nulls(s)) == ['db-plain']
    full, free = forwards(s), forwards(s, trains=False); assert free['customize'] < full['customize'] and free['semantic'] > full['semantic']
    need = memory('mini', method('ref-append')); assert need is None or not need.gradients

def test_a_sequence_of_what_leaves_nothing_is_refused(tmp_path):
    from openworld_forget.study.files import read_study
    (f := tmp_path/'s.yaml').write_text('name: s\nconcepts: [cat-noto, dog-fluent]\nmethods: [ref-append]\nsteps: [sequence]\nreports: [sequences]\n')
    with pytest.raises(ForgetError, match="'ref-append' trains nothing, and the step sequence"): read_study(f)

# ---------------------------------------------------------------- the report
STUDY = Study(name='demo', concepts=['cat-noto', 'dog-fluent'], seeds=[0, 1, 2], steps=['front'], reports=['weightless'],
              methods=['half', 'db-plain', 'ref-append', 'ref-50', 'ref-class', 'off', 'ti'],
              variants={'half': dict(of='db-plain', strength=.5), 'off': dict(of='ref-append', strength=0),
                        'ref-50': dict(of='ref-append', strength=.5),
                        'ref-class': dict(of='ref-append', adaptation=dict(pictures='class'))})

def made(home, drop, ti=0, control=3):
    "Runs of 100 images; the update loses 20 points, the reference `drop`, textual inversion `ti`."
    how = {'half': (.6, 5), 'db-plain': (.8, 20), 'ref-append': (.7, drop), 'ref-50': (.55, drop/2),
           'ref-class': (.42, control), 'off': (.4, 0), 'ti': (.5, ti)}
    for m, c, s in itertools.product(STUDY.methods, STUDY.concepts, STUDY.seeds):
        like, lost = how[m]; lost = round(lost + (STUDY.concepts.index(c) + s - 1.5)*(lost > 0)); f = run_folder(home, c, m, s)
        t = [units_of('right', range(100), [0]*lost + [1]*(100 - lost), 1., 1.), units_of('lpips', ['p'], lost/100, 0., .5),
             units_of('colour', ['p'], lost/100, 0., .5), units_of('fidelity', ['p'], like + .01*s*(m != 'off'), .4), units_of('text', ['p'], .3, .3)]
        f.mkdir(parents=True, exist_ok=True); pd.concat(t).to_csv(f/'units.csv', index=False)
        pd.DataFrame(dict(value=[0.])).to_parquet(f/'front.parquet')
    return home

def report(home):
    code, said = template_code('weightless'), dict(study=STUDY.model_dump_json(), home=str(home))
    for k, v in said.items(): code = re.sub(rf"(?m)^{k} = .*$", lambda m, k=k, v=v: f'{k} = {v!r}', code)
    exec(compile(code, 'weightless', 'exec'), {}); plt.close('all')
    return (home/'weightless.txt').read_text()

def test_the_report_answers_no_where_pictures_alone_lose_recognition(tmp_path, capsys):
    said = report(made(tmp_path, 12)); t = pd.read_csv(tmp_path/'tables/weightless.csv').set_index('method')
    assert said.startswith('**No.**') and 'of 2 methods that change no weight 2 learned the subject' in said
    assert '2 of these lose recognition while on, and 1 lose more than with as many pictures' in said and '`ref-append` (9.0' in said
    assert '; more than its control, `ref-class` (9.0' in said and t.control['ref-append'] == 'ref-class' and t.control.isna()['ref-50']
    assert '`off` is exactly the base in all of 612 units' in said and '`ti` is exactly the base' in said and (tmp_path/'figures/weightless.png').is_file()
    assert t.trains.to_dict() == {m: m in ('half', 'db-plain', 'ti') for m in STUDY.methods} and t['drop']['ref-append'] == 12 and t.images['off'] == 600
    assert '`ref-append` against rewound `db-plain`' in said

def test_what_any_picture_does_is_not_said_of_the_subject(tmp_path, capsys):
    said = report(made(tmp_path, 12, control=12)); assert not said.startswith('**No') and 'not decided whether more than its control' in said

def test_the_report_answers_yes_where_they_lose_nothing_and_refuses_a_control_that_drifts(tmp_path, capsys):
    assert report(made(tmp_path, 0)).startswith('**Yes, as far as this sees.**')
    with pytest.raises(ForgetError, match='ti must be exactly the base'): report(made(tmp_path, 0, ti=3))
