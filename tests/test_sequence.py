"""Subjects that follow one another: plain weights after each stage, the teacher, tokens, and chains that were killed."""
from dataclasses import replace

import pytest
import torch

from openworld_forget.core import ForgetError, generator, load_tensors
from openworld_forget.training import methods
from openworld_forget.training.adapt import ADAPTATIONS, Adaptation, adapt, freeze
from openworld_forget.training.methods import customize, method, run_key, teacher_of
from openworld_forget.training.regularize import Objective, PlainObjective, correction_terms
from openworld_forget.training.sequence import TOLERANCE, check_sequence, customize_sequence, own_tokens, plain_world
from openworld_forget.worlds.tiny import tiny_subject, tiny_world, tiny_xl_world
from openworld_forget.worlds.world import WORLDS

FAST = dict(images=2, recipe=dict(steps=2, batch=2, lr=1e-3))
WORDS = (('a', 'cat'), ('b', 'dog'), ('c', 'cup'))

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('regularizer images')
@pytest.fixture(scope='module')
def subjects(): return [replace(tiny_subject(), name=n, class_word=w, token=t) for (n, w), t in zip(WORDS, 'xyz')]
@pytest.fixture(scope='module')
def second(base, subjects):
    "A world that a first subject has left: Custom Diffusion moves its weights and its table of words."
    return next(iter(customize_sequence(base, subjects[:1], method('cd-plain', recipe=dict(steps=3, batch=2, lr=1e-2)))))

def shaken(base, kind, **fields):
    w, params = adapt(base, Adaptation(kind=kind, **fields), 'x')
    g = generator(0, 'shake')
    with torch.no_grad(): [p.add_((.1*torch.randn(p.shape, generator=g)).to(p.dtype)) for p in params.values()]
    return freeze(w)

def answer(w):
    z = torch.randn(2, *w.latent_shape, generator=generator(0, 'probe')).to(w.dtype)
    with torch.no_grad(): return w.predict(z, torch.tensor([50, 700]), w.encode_text(['a x cat', 'a dog']))

@pytest.mark.parametrize('kind', ADAPTATIONS)
def test_merged_weights_predict_the_same(base, kind):
    before, w = base.key, shaken(base, kind)
    said, plain = answer(w), plain_world(base, w, 'a x cat')
    assert (answer(plain) - said).abs().max() < TOLERANCE*said.abs().max() < (said - answer(base)).abs().max()
    assert torch.equal(answer(w), said)                                                     # the adapted world is as it was
    assert base.but().key == before and not any(p.requires_grad for n in plain.networks.values() for p in n.parameters())
    for k, n in plain.networks.items(): assert n.state_dict().keys() == base.networks[k].state_dict().keys()

def test_a_lora_is_merged_by_its_formula(base):
    w = shaken(base, 'lora', rank=2, alpha=6.)
    k = 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    layer = w.unet.get_submodule(k)
    want = layer.base_layer.weight + 6/2*layer.lora_B['default'].weight @ layer.lora_A['default'].weight
    got, old = plain_world(base, w).unet.get_submodule(k).weight, base.unet.get_submodule(k).weight
    assert torch.allclose(got, want, atol=1e-7) and not torch.allclose(got, old, atol=1e-3)

def test_a_row_goes_into_the_table_and_no_other_row_moves(base):
    rows = [w.text_encoder.get_input_embeddings().weight for w in (base, plain_world(base, shaken(base, 'cd')))]
    assert (rows[0] != rows[1]).any(1).nonzero().flatten().tolist() == base.tokenizer('x', add_special_tokens=False).input_ids

def test_two_text_encoders_are_merged_too():
    base = tiny_xl_world()
    w = shaken(base, 'cd')
    assert torch.allclose(answer(plain_world(base, w, 'a x cat')), answer(w), atol=1e-5)

def test_half_precision_is_merged_as_closely_as_it_can_be():
    base = tiny_world().to(dtype=torch.bfloat16)
    w = shaken(base, 'lora')
    assert plain_world(base, w).dtype == torch.bfloat16

def test_what_cannot_be_merged_is_refused(base):
    w = shaken(base, 'db')
    w.unet.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ForgetError, match=r"cannot be merged.*'extra'"): plain_world(base, w)

def test_merging_that_changes_answers_is_refused(base, monkeypatch):
    import openworld_forget.training.sequence as S
    w = shaken(base, 'lora')
    monkeypatch.setattr(S, 'merged', lambda start, w: w)
    with pytest.raises(ForgetError, match='cannot be merged'): plain_world(base, w)
    monkeypatch.setattr(S, 'merged', lambda start, w: start)
    with pytest.raises(ForgetError, match='its answers change'): plain_world(base, w)

@pytest.mark.parametrize('name', ['db', 'lora-dc', 'cd-dc-nopr'])
def test_a_sequence_of_one_is_a_customization(base, subjects, cache, tmp_path, name):
    m = method(name, **FAST)
    stage, = customize_sequence(base, subjects[:1], m, seed=3, folder=tmp_path/'chain', cache=cache)
    world, log = customize(base, subjects[0], m, seed=3, path=tmp_path/'alone.safetensors')
    (a, said), (b, said2) = (load_tensors(tmp_path/f) for f in ('chain/stage-1.safetensors', 'alone.safetensors'))
    assert said == said2 and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert stage.log == log and stage.world.key == plain_world(base, world).key

def test_killed_anywhere_a_chain_ends_with_the_same_weights(base, subjects, cache, tmp_path, monkeypatch):
    m = method('lora-plain', **FAST)
    chain = lambda folder: [(s.world.key, s.log) for s in customize_sequence(base, subjects[:2], m, folder=folder, cache=cache, every=1)]
    once = chain(None)
    fit, trained = methods.fit, []
    def one_step(*a, **kw):
        trained.append(1)
        log, ema = fit(*a, **kw, until=len(trained) % 2)                    # 1: stopped; 0: to the end
        if len(trained) % 2: raise KeyboardInterrupt
        return log, ema
    monkeypatch.setattr(methods, 'fit', one_step)
    for killed in ('stage 1', 'stage 2'):
        with pytest.raises(KeyboardInterrupt): chain(tmp_path)
    assert (tmp_path/'stage-1.safetensors').exists() and (tmp_path/'stage-2.ckpt.safetensors').exists()
    assert chain(tmp_path) == once and len(trained) == 4                    # stage 1: 2 goes, stage 2: 2 goes, none twice
    assert chain(tmp_path) == once and len(trained) == 4                    # and then all is loaded
    monkeypatch.undo()
    other = [subjects[2], subjects[1]]                                      # another history: the second stage is another
    after = [s.world.key for s in customize_sequence(base, other, m, folder=tmp_path, cache=cache)]
    assert after[1] != once[1][0]

@pytest.mark.parametrize('name', ['cd-dc-nopr'])
def test_the_teacher_counts_from_the_second_stage_on(base, subjects, cache, name):
    ends = []
    for teacher in ('base', 'previous'):
        m = method(name, teacher=teacher, **FAST)
        ends.append([s.world.key for s in customize_sequence(base, subjects[:2], m, cache=cache)])
    assert ends[0][0] == ends[1][0] and ends[0][1] != ends[1][1]

def test_the_key_knows_the_teacher_where_it_counts(base, second, subjects):
    of = lambda name, start, origin: run_key(start, subjects[1], method(name), 0, origin)
    assert of('cd-dc', second.world, base) != of('cd-dc', second.world, None)
    assert of('cd-plain', second.world, base) == of('cd-plain', second.world, None)         # nobody is asked
    assert of('cd-dc', base, base) == of('cd-dc', base, None)
    assert teacher_of(second.world, method('cd-dc'), base) is base
    assert teacher_of(second.world, method('cd-dc', teacher='previous'), base) is second.world

@pytest.mark.parametrize('kind', ['lora', 'cd'])
def test_the_correction_is_zero_at_its_teacher(base, second, subjects, cache, kind):
    start = second.world
    w, params = adapt(start, Adaptation(kind=kind), 'y')
    for teacher, zero in ((start, True), (base, False)):
        terms = correction_terms(teacher, subjects[1], 1., 'class', 2, cache=cache)
        loss = Objective(start, w, subjects[1], terms, 2, 0, teacher=teacher)(0)['correction']
        assert (loss.item() < 1e-10) == zero

def test_a_teacher_reads_with_its_own_text_encoder(base, subjects, cache):
    "And one forward for all is a forward for each, whoever teaches."
    start = plain_world(base, shaken(base, 'db', text_encoder=True))
    w, _ = adapt(start, Adaptation(), 'y')
    terms = correction_terms(base, subjects[1], 1., 'class+generic', 2, cache=cache)
    plain, fast = (cls(start, w, subjects[1], terms, 2, 0, teacher=base) for cls in (PlainObjective, Objective))
    assert torch.allclose(plain(0)['correction'], fast(0)['correction'], rtol=1e-4)
    p = next(p for p in plain.terms if p.teacher)
    b = plain.draw(p.stream, 0).first(plain.count(p))                                       # what the trained world sees
    y = base.predict(b.x, b.t, base.encode_text([subjects[1].class_prompt]*len(b)))
    with torch.no_grad(): assert torch.allclose(plain.answer(p, 0), y, atol=1e-5)
    assert not torch.allclose(b.c, plain.asked(p, 0).c, atol=1e-3) and torch.equal(b.x, plain.asked(p, 0).x)

def test_a_world_gives_each_subject_a_token_of_its_own(base, subjects):
    spec = base.spec.but(token='u', tokens=['v', 'w'])
    assert [s.token for s in own_tokens(spec, subjects)] == ['u', 'v', 'w'] and own_tokens(spec, []) == []
    for few in (spec.but(tokens=['v']), spec.but(tokens=['v', 'u'])):
        with pytest.raises(ForgetError, match=r'each; world .* names 2'): own_tokens(few, subjects)
    for name, s in WORLDS.items(): assert len(own_tokens(s, subjects[:1]*5)) == 5, name

def test_the_mini_world_knows_its_tokens_as_one_each():
    from openworld_forget.mini.text import RARE, new_tokenizer
    spec, tok = WORLDS['mini'], new_tokenizer()
    assert [spec.token, *spec.tokens] == RARE and all(len(tok(x, add_special_tokens=False).input_ids) == 1 for x in RARE)

def test_what_cannot_be_learned_in_sequence_is_said_before_the_first_stage(base, subjects):
    a, b, _ = subjects
    cases = (([], 'one subject or more'), ([a, replace(b, token='x')], "a and b share the token 'x'"),
             ([replace(a, token='sks')], "'sks' is 3 tokens"), ([replace(a, class_word='y'), b], "holds the token 'y'"))
    for bad, said in cases:
        with pytest.raises(ForgetError, match=said): customize_sequence(base, bad, method('db', **FAST))
    with pytest.raises(ForgetError, match='teacher'): method('db', teacher='first')

def test_a_generic_caption_may_hold_no_subjects_token(base, subjects, monkeypatch):
    import openworld_forget.training.sequence as S
    monkeypatch.setattr(S, 'captions_for', lambda *a: ['a y on a table'])
    check_sequence(base, subjects[:2], method('db-dc'))                                     # class images: nobody says so
    with pytest.raises(ForgetError, match=r"a y on a table.*token 'y'"):
        check_sequence(base, subjects[:2], method('db-dc', source='generic'))
