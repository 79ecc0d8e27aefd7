"""Files as people have them, made here in every way of writing, and what each of them means: W + dW by hand, or what diffusers and peft predict from
the same file; where it means nothing on this base, the true reason."""
import json
import math
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from openworld_forget.training.checkpoints import checkpoint_files, checkpoint_kind, differences, load_adapted
from openworld_forget.training.deltas import header, layer_names
from openworld_forget.core import ForgetError, load_tensors
from openworld_forget.training.adapt import Adaptation, adapt, save_adapted
from openworld_forget.worlds.load import clone, load_world
from openworld_forget.worlds.tiny import save_world, tiny_world
from wild import (
    ATTENTION, CONV, G, NORM, RES, TEXT, TO_Q, attention, exact, kohya, pairs, probe, r, refused, rows, same, shake, single_file, tucker, weight, write,
)

@pytest.fixture(scope='module')
def base(): return tiny_world()
@pytest.fixture(scope='module')
def mini(): return load_world('mini', 'cpu')

@pytest.fixture(autouse=True)
def seeded():
    "peft draws its weights from the global generator: the same ones in every run, whatever ran before."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield

# ---- LoRA: scales

@pytest.mark.parametrize('alpha', [lambda i: 2 + i % 6, lambda i: 1.5*(1 + i % 4), lambda i: None, lambda i: 4 if i % 2 else None, lambda i: i % 3 - 1],
                         ids=['alpha = rank', 'other alphas', 'no alpha', 'alpha for some', 'alpha 0 and below'])
def test_every_layer_has_its_own_rank_and_alpha(base, tmp_path, alpha):
    f, deltas = pairs(base, attention(base), lambda i: 2 + i % 6, alpha)
    exact(base, write(tmp_path/'resized.safetensors', f), deltas)

def test_the_recipe_of_the_resized_lora_on_the_mini_world(mini, tmp_path):
    f, deltas = pairs(mini, attention(mini), lambda i: 2 + i % 6, lambda i: 2 + i % 6)
    exact(mini, write(tmp_path/'resized.safetensors', f), deltas)

@pytest.mark.parametrize('alpha', [torch.tensor(6), torch.tensor(6, dtype=torch.float16), torch.tensor([6.]), torch.tensor(6., dtype=torch.bfloat16)],
                         ids=['int', 'half', 'one element', 'bfloat16'])
def test_alpha_is_one_number_however_it_is_stored(base, tmp_path, alpha):
    f, deltas = pairs(base, [TO_Q], alpha=lambda i: 6); f[kohya(TO_Q) + '.alpha'] = alpha
    exact(base, write(tmp_path/'a.safetensors', f), deltas)

@pytest.mark.parametrize('change, said', [
    (lambda f: f.update({kohya(TO_Q) + '.alpha': torch.tensor(float('nan'))}), 'non-finite'),
    (lambda f: f.update({kohya(TO_Q) + '.alpha': torch.ones(2)}), 'alpha is one number'),
    (lambda f: f.pop(kohya(TO_Q) + '.lora_up.weight'), 'both halves'),
    (lambda f: f.pop(kohya(TO_Q) + '.lora_down.weight'), 'both halves'),
    (lambda f: (f.pop(kohya(TO_Q) + '.lora_down.weight'), f.pop(kohya(TO_Q) + '.lora_up.weight')), "['alpha']"),
    (lambda f: f.update({kohya(TO_Q) + '.lora_up.weight': r(32, 5)}), 'do not fit each other'),
    (lambda f: f.update({kohya(TO_Q) + '.lora_up.weight': r(31, 2)}), 'this base needs [32, 32]'),
    (lambda f: f.update({kohya(TO_Q) + '.lora_up.weight': torch.zeros(32, 2, dtype=torch.int8)}), 'int8'),
    (lambda f: f.update({kohya(TO_Q) + '.lora_down.weight': r(0, 32), kohya(TO_Q) + '.lora_up.weight': r(32, 0)}), 'to_q'),
    (lambda f: f.update({'unet.' + TO_Q + '.lora_A.weight': r(2, 32)}), 'are both for unet.' + TO_Q),
    (lambda f: f.update({kohya(TO_Q) + '.rank_mask': r(2)}), 'rank_mask'),
    (lambda f: f.update({kohya('mid_block.attentions.9.proj_in') + '.lora_down.weight': r(2)}), 'no layer for'),
], ids=['nan alpha', 'two alphas', 'no up', 'no down', 'alpha alone', 'halves', 'shape', 'integers', 'rank 0', 'twice', 'unknown', 'lost'])
def test_a_damaged_lora_names_the_tensor(base, tmp_path, change, said):
    f, _ = pairs(base, [TO_Q, CONV], alpha=lambda i: 2.); change(f)
    refused(base, write(tmp_path/'a.safetensors', f), said)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64], ids=str)
def test_stored_precision_is_rounding_only(base, tmp_path, dtype):
    f, _ = pairs(base, attention(base), alpha=lambda i: 3.); f = {k: v.to(dtype) for k, v in f.items()}
    q = kohya(TO_Q); A, B = f[q + '.lora_down.weight'].float(), f[q + '.lora_up.weight'].float()
    got = differences(base, write(tmp_path/'a.safetensors', f))[f'unet.{TO_Q}.weight']
    assert got.dtype == torch.float32 and torch.allclose(got, 1.5*B@A, atol=1e-6)

def test_a_world_in_bfloat16_rounds_the_sum_once(base, tmp_path):
    f, deltas = pairs(base, [TO_Q]); w = tiny_world().to(dtype=torch.bfloat16); a = load_adapted(w, write(tmp_path/'a.safetensors', f))
    assert torch.equal(a.unet.get_submodule(TO_Q).weight, (w.unet.get_submodule(TO_Q).weight.float() + deltas[TO_Q]).bfloat16())

def test_the_base_is_as_it_was(base, tmp_path):
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    f, _ = pairs(base, attention(base)); load_adapted(base, write(tmp_path/'a.safetensors', f), strength=2.)
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items()) and not base.unet.training

# ---- LoRA: ways of writing

OLD = {'to_q': 'to_q_lora', 'to_k': 'to_k_lora', 'to_v': 'to_v_lora', 'to_out.0': 'to_out_lora'}
def older(n):
    head, _, tail = n.partition('attn1.') if 'attn1.' in n else n.partition('attn2.')
    return f'unet.{head}{n[len(head):len(head) + 6]}processor.{OLD[tail]}'
WAYS = dict(
    kohya=(kohya, 'lora_down.weight', 'lora_up.weight'), lycoris=(lambda n: kohya(n, 'lycoris'), 'lora_down.weight', 'lora_up.weight'),
    diffusers=(lambda n: 'unet.' + n, 'lora_A.weight', 'lora_B.weight'), bare=(lambda n: n, 'lora.down.weight', 'lora.up.weight'),
    adapter=(lambda n: 'unet.' + n, 'lora_A.default.weight', 'lora_B.default.weight'),
    dotted=(lambda n: 'unet.' + n, 'lora_down.weight', 'lora_up.weight'), processor=(older, 'down.weight', 'up.weight'),
)
@pytest.mark.parametrize('way', WAYS)
def test_ways_of_writing_a_layer(base, tmp_path, way):
    name, down, up = WAYS[way]
    f, deltas = pairs(base, attention(base), lambda i: 2 + i % 3, write=name, down=down, up=up)
    exact(base, write(tmp_path/'a.safetensors', f), deltas)

TEXT_WAYS = dict(
    kohya=('lora_te_text_model_encoder_layers_0_self_attn_q_proj', 'lora_down.weight', 'lora_up.weight'),
    te1=('lora_te1_text_model_encoder_layers_0_self_attn_q_proj', 'lora_down.weight', 'lora_up.weight'),
    flat=('lora_te_encoder_layers_0_self_attn_q_proj', 'lora_down.weight', 'lora_up.weight'),
    diffusers=('text_encoder.text_model.encoder.layers.0.self_attn.q_proj', 'lora_linear_layer.down.weight', 'lora_linear_layer.up.weight'),
    older=('text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora', 'down.weight', 'up.weight'),
    today=('text_encoder.encoder.layers.0.self_attn.q_proj', 'lora_A.weight', 'lora_B.weight'),
)
@pytest.mark.parametrize('way', TEXT_WAYS)
def test_ways_of_writing_a_layer_of_the_text_encoder(base, tmp_path, way):
    name, down, up = TEXT_WAYS[way]
    f, deltas = pairs(base, [TEXT], write=lambda n: name, down=down, up=up)
    exact(base, write(tmp_path/'a.safetensors', f), deltas)

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('targets', [ATTENTION, (*ATTENTION, 'proj_in', 'ff.net.0.proj')], ids=['attention', 'proj_in too'])
@pytest.mark.parametrize('convert', [False, True], ids=['peft keys', 'diffusers keys'])
@pytest.mark.parametrize('kw', [dict(), dict(lora_alpha=20), dict(use_rslora=True), dict(rank_pattern={'attn2.to_k': 3}, alpha_pattern={'attn1.to_q': 11})],
                         ids=['plain', 'alpha', 'rslora', 'patterns'])
def test_what_diffusers_saves_is_what_its_own_model_predicts(base, tmp_path, targets, convert, kw):
    u = clone(base.unet); u.add_adapter(LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False, **kw))
    state = get_peft_model_state_dict(u); state = convert_state_dict_to_diffusers(state) if convert else state
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=u.peft_config['default'].to_dict())
    w = load_adapted(base, tmp_path); assert same(w, base.but(unet=u)) and not same(w, base, 1e-3)
    if convert and 'proj_in' in targets: return                                   # diffusers writes this mixture of keys, and warns that it loses half of it
    loaded = base.but(unet=clone(base.unet)); loaded.pipeline().load_lora_weights(str(tmp_path)); assert same(w, loaded)

def test_a_lora_of_diffusers_without_metadata_has_scale_one(base, tmp_path):
    u = clone(base.unet); u.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=['to_q', 'proj_in'], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(u)))
    assert same(load_adapted(base, tmp_path), base.but(unet=u))

PEFTS = dict(
    lora=LoraConfig(r=4, lora_alpha=10, target_modules=list(ATTENTION), init_lora_weights=False),
    patterns=LoraConfig(r=4, target_modules=[*ATTENTION, 'conv1'], rank_pattern={'to_k': 2}, alpha_pattern={'attn2.to_v': 3}, init_lora_weights=False),
    rslora=LoraConfig(r=4, lora_alpha=10, use_rslora=True, target_modules=list(ATTENTION), init_lora_weights=False),
    dora=LoraConfig(r=4, lora_alpha=10, use_dora=True, target_modules=[*ATTENTION, 'conv1', 'proj_in'], init_lora_weights=False),
    bias=LoraConfig(r=4, lora_alpha=10, lora_bias=True, target_modules=['to_out.0', 'conv1'], init_lora_weights=False),
    whole=LoraConfig(r=4, target_modules=['to_q'], modules_to_save=['conv_out'], bias='lora_only', init_lora_weights=False),
    loha=LoHaConfig(r=3, alpha=5, target_modules=[*ATTENTION, 'conv1'], init_weights=False),
    loha_tucker=LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=['conv1'], init_weights=False),
    lokr=LoKrConfig(r=2, alpha=5, target_modules=[*ATTENTION, 'conv1'], init_weights=False),
    lokr_both=LoKrConfig(r=2, alpha=5, decompose_both=True, decompose_factor=4, target_modules=[*ATTENTION, 'conv1'], init_weights=False),
    lokr_whole=LoKrConfig(r=64, alpha=5, target_modules=['to_q'], init_weights=False),
    lokr_tucker=LoKrConfig(r=2, alpha=5, use_effective_conv2d=True, target_modules=['conv1'], init_weights=False),
)
@pytest.mark.filterwarnings('ignore:Adapter .* LoRA tensor')                        # of peft, about the biases that it writes itself
@pytest.mark.parametrize('kind', PEFTS)
def test_pefts_own_folder_is_what_peft_predicts(base, tmp_path, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0); m = get_peft_model(clone(base.unet), PEFTS[kind]).eval()
    with torch.no_grad():
        for k, p in m.named_parameters():
            if any(s in k for s in ('magnitude', 'lora_', 'modules_to_save', 'hada', 'lokr')): p.mul_(.6).add_(.02*torch.randn(p.shape, generator=G))
    m.save_pretrained(tmp_path/'adapter')
    w, z = load_adapted(base, tmp_path/'adapter'), torch.randn(2, *base.latent_shape, generator=G)
    c, t = base.encode_text(['a dog']*2), torch.tensor([5, 500])
    with torch.no_grad(): mine, theirs, old = w.predict(z, t, c), m(z, t, c).sample, base.predict(z, t, c)
    assert torch.allclose(mine, theirs, atol=2e-5) and (mine - old).abs().max() > 50*(mine - theirs).abs().max()
    (tmp_path/'adapter/adapter_config.json').unlink()
    refused(base, tmp_path/'adapter', 'adapter_config.json')

@pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing:FutureWarning')     # of peft's call of transformers
def test_peft_folders_of_denoiser_and_text_encoder_side_by_side(base, tmp_path):
    u = get_peft_model(clone(base.unet), LoraConfig(r=2, lora_alpha=6, target_modules=['to_q'], init_lora_weights=False))
    t = get_peft_model(clone(base.text_encoder), LoraConfig(r=2, lora_alpha=2, target_modules=['q_proj'], init_lora_weights=False))
    u.save_pretrained(tmp_path/'unet'); t.save_pretrained(tmp_path/'text_encoder')
    w = load_adapted(base, tmp_path); assert same(w, base.but(unet=u.merge_and_unload(), text_encoder=t.merge_and_unload()))
    assert checkpoint_kind(tmp_path)[0] == 'peft' and {k.split('.')[0] for k in differences(base, tmp_path)} == {'unet', 'text_encoder'}

@pytest.mark.parametrize('change, said', [
    (dict(init_lora_weights='pissa'), "init_lora_weights = 'pissa'"), (dict(layer_replication=[[0, 1]]), 'layer_replication'), (dict(r=5), 'rank 5'),
    (dict(use_dora=True), 'use_dora'), (dict(peft_type='VERA'), 'VERA'), (dict(something_new=.5), 'something_new'),
])
def test_a_peft_config_that_means_something_else_is_refused(base, tmp_path, change, said):
    get_peft_model(clone(base.unet), PEFTS['lora']).save_pretrained(tmp_path)
    f = tmp_path/'adapter_config.json'; f.write_text(json.dumps({**json.loads(f.read_text()), **change}))
    refused(base, tmp_path, said)

def test_ia3_of_peft_and_lycoris_and_other_kinds_are_named(base, tmp_path):
    m = get_peft_model(clone(base.unet), IA3Config(target_modules=['to_k'], feedforward_modules=[])); m.save_pretrained(tmp_path/'p')
    refused(base, tmp_path/'p', 'not read', 'IA3')
    q = kohya(TO_Q)
    refused(base, write(tmp_path/'i.safetensors', {q + '.weight': r(32), q + '.on_input': torch.tensor(True)}), 'not read', 'IA3')
    refused(base, write(tmp_path/'o.safetensors', {q + '.oft_blocks': r(4, 8, 8), q + '.alpha': r(1)[0]}), 'not read', 'OFT')
    refused(base, write(tmp_path/'g.safetensors', {q + '.a1.weight': r(4, 8), q + '.alpha': r(1)[0]}), 'not read', 'GLoRA')
    refused(base, write(tmp_path/'l.safetensors', {'lllite_unet_x.down.0.weight': r(4, 8)}), 'not read', 'LLLite')

# ---- the other kinds of difference, by hand

KINDS = {
    'locon': (RES, lambda o, i: dict(up=r(o, 4, 1, 1), down=r(4, i, 3, 3)), lambda t: (t['up'].flatten(1) @ t['down'].flatten(1)), 4),
    'conv 1x1': (CONV, lambda o, i: dict(up=r(o, 4, 1, 1), down=r(4, i, 1, 1)), lambda t: t['up'][..., 0, 0] @ t['down'][..., 0, 0], 4),
    'conv 1x1 as a matrix': (CONV, lambda o, i: dict(up=r(o, 4), down=r(4, i)), lambda t: t['up'] @ t['down'], 4),
    'matrix as conv 1x1': (TO_Q, lambda o, i: dict(up=r(o, 4, 1, 1), down=r(4, i, 1, 1)), lambda t: t['up'][..., 0, 0] @ t['down'][..., 0, 0], 4),
    'tucker': (RES, lambda o, i: dict(up=r(o, 4, 1, 1), mid=r(4, 4, 3, 3), down=r(4, i, 1, 1)),
               lambda t: tucker(t['mid'], t['up'][..., 0, 0].T, t['down'][..., 0, 0]), 4),
    'loha': (TO_Q, lambda o, i: dict(hada_w1_a=r(o, 4), hada_w1_b=r(4, i), hada_w2_a=r(o, 4), hada_w2_b=r(4, i)),
             lambda t: (t['hada_w1_a'] @ t['hada_w1_b'])*(t['hada_w2_a'] @ t['hada_w2_b']), 4),
    'loha conv': (RES, lambda o, i: dict(hada_w1_a=r(o, 4), hada_w1_b=r(4, i*9), hada_w2_a=r(o, 4), hada_w2_b=r(4, i*9)),
                  lambda t: (t['hada_w1_a'] @ t['hada_w1_b'])*(t['hada_w2_a'] @ t['hada_w2_b']), 4),
    'loha tucker': (RES, lambda o, i: {
        f'hada_{k}': v for x in '12' for k, v in ((f't{x}', r(4, 4, 3, 3)), (f'w{x}_a', r(4, o)), (f'w{x}_b', r(4, i)))},
                    lambda t: tucker(t['hada_t1'], t['hada_w1_a'], t['hada_w1_b'])*tucker(t['hada_t2'], t['hada_w2_a'], t['hada_w2_b']), 4),
    'lokr whole': (TO_Q, lambda o, i: dict(lokr_w1=r(4, 4), lokr_w2=r(o//4, i//4)), lambda t: torch.kron(t['lokr_w1'], t['lokr_w2']), None),
    'lokr w2': (TO_Q, lambda o, i: dict(lokr_w1=r(4, 2), lokr_w2_a=r(o//4, 3), lokr_w2_b=r(3, i//2)),
                lambda t: torch.kron(t['lokr_w1'], t['lokr_w2_a'] @ t['lokr_w2_b']), 3),
    'lokr w1': (TO_Q, lambda o, i: dict(lokr_w1_a=r(4, 3), lokr_w1_b=r(3, 4), lokr_w2=r(o//4, i//4)),
                lambda t: torch.kron(t['lokr_w1_a'] @ t['lokr_w1_b'], t['lokr_w2']), 3),
    'lokr conv': (RES, lambda o, i: dict(lokr_w1=r(4, 4), lokr_w2=r(o//4, i//4, 3, 3)),
                  lambda t: torch.kron(t['lokr_w1'][..., None, None], t['lokr_w2']), None),
    'lokr conv product': (RES, lambda o, i: dict(lokr_w1=r(4, 4), lokr_w2_a=r(o//4, 3), lokr_w2_b=r(3, i//4*9)),
                          lambda t: torch.kron(t['lokr_w1'][..., None, None], (t['lokr_w2_a'] @ t['lokr_w2_b']).reshape(8, 8, 3, 3)), 3),
    'lokr tucker': (RES, lambda o, i: dict(lokr_w1=r(4, 4), lokr_t2=r(3, 3, 3, 3), lokr_w2_a=r(3, o//4), lokr_w2_b=r(3, i//4)),
                    lambda t: torch.kron(t['lokr_w1'][..., None, None], tucker(t['lokr_t2'], t['lokr_w2_a'], t['lokr_w2_b'])), 3),
}
FILE = dict(up='lora_up.weight', down='lora_down.weight', mid='lora_mid.weight')
@pytest.mark.parametrize('alpha', [None, 1.5], ids=['no alpha', 'alpha'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_difference_is_its_formula(base, tmp_path, kind, alpha):
    name, make, formula, rank = KINDS[kind]; o, i = weight(base, name).shape[:2]; t = make(o, i)
    f = {f'{kohya(name)}.{FILE.get(k, k)}': v for k, v in t.items()} | ({kohya(name) + '.alpha': torch.tensor(alpha)} if alpha else {})
    scale = alpha/rank if alpha and rank else 1.
    exact(base, write(tmp_path/'a.safetensors', f), {name: scale*formula(t)})
    for k in list(f):                                                            # no part of it may be missing
        if not k.endswith('.alpha') and not ('lora_mid' in k and kind == 'matrix'):
            refused(base, write(tmp_path/'b.safetensors', {x: v for x, v in f.items() if x != k}), name)

def test_full_differences_norms_and_biases(base, tmp_path):
    f = {kohya(RES) + '.diff': r(32, 32, 3, 3), kohya(RES) + '.diff_b': r(32), kohya(NORM) + '.w_norm': r(32), kohya(NORM) + '.b_norm': r(32),
         kohya('conv_in') + '.diff_b': r(16)}
    A, B = r(4, 32), r(32, 4); f |= {kohya(CONV) + '.lora_down.weight': A, kohya(CONV) + '.lora_up.weight': B, kohya(CONV) + '.diff_b': r(32)}
    exact(base, write(tmp_path/'full.safetensors', f), {RES: f[kohya(RES) + '.diff'], NORM: f[kohya(NORM) + '.w_norm'], CONV: B@A},
          {n: f[kohya(n) + s] for n, s in ((RES, '.diff_b'), (NORM, '.b_norm'), ('conv_in', '.diff_b'), (CONV, '.diff_b'))})
    refused(base, write(tmp_path/'a.safetensors', {kohya(TO_Q) + '.diff_b': r(32)}), 'has no place')
    refused(base, write(tmp_path/'b.safetensors', {kohya(TO_Q) + '.diff': r(32, 32), kohya(TO_Q) + '.alpha': torch.tensor(2.)}), "'alpha'")

@pytest.mark.parametrize('name', [TO_Q, 'mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj', RES, CONV])
@pytest.mark.parametrize('axis', ['out', 'out, flat', 'in'])
def test_dora_has_the_lengths_of_its_file_and_the_direction_of_the_sum(base, tmp_path, name, axis):
    W = weight(base, name); n = W.ndim; f, d = pairs(base, [name], alpha=lambda i: 3.); V = W + d[name]
    size = (r(W.shape[1]) + 2).view(1, -1, *[1]*(n-2)) if axis == 'in' else (r(len(W)) + 2).view(-1, *[1]*(n-1))
    dims = tuple(i for i in range(n) if i != (1 if axis == 'in' else 0)); new = size*V/V.pow(2).sum(dim=dims, keepdim=True).sqrt()
    f[kohya(name) + '.dora_scale'] = size.flatten() if axis == 'out, flat' else size
    exact(base, write(tmp_path/'dora.safetensors', f), {name: new - W})
    f[kohya(name) + '.dora_scale'] = r(7); refused(base, write(tmp_path/'bad.safetensors', f), 'DoRA')

def test_a_dora_under_kohyas_names_is_what_peft_predicts(base, tmp_path):
    u = clone(base.unet); u.add_adapter(LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=[*ATTENTION, 'conv2'], init_lora_weights=False))
    with torch.no_grad():
        for k, p in u.named_parameters():
            if 'magnitude' in k: p.mul_(1.2 + r(*p.shape))
    names = dict(A='lora_down.weight', B='lora_up.weight', m='dora_scale'); f = {}
    for k, v in get_peft_model_state_dict(u).items():
        n, _, end = k.partition('.lora_'); f[f'{kohya(n)}.{names[end[0]]}'] = v.flatten() if end[0] == 'm' else v; f[f'{kohya(n)}.alpha'] = torch.tensor(6.)
    assert same(load_adapted(base, write(tmp_path/'dora.safetensors', f)), base.but(unet=u), 2e-5) and not same(base.but(unet=u), base, 1e-3)

# ---- made for another base

@pytest.mark.parametrize('keys, meta, said', [
    ({'lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight': (8, 4)}, {}, '(SDXL)'),
    ({'text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight': (4, 8)}, {}, '(SDXL)'),
    ({'transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight': (4, 8)}, {}, '(Flux'),
    ({kohya(TO_Q.replace('attn1', 'attn2').replace('to_q', 'to_k')) + '.lora_down.weight': (4, 1024),
      kohya(TO_Q.replace('attn1', 'attn2').replace('to_q', 'to_k')) + '.lora_up.weight': (32, 4)}, {}, '(SD 2)'),
    ({kohya(TO_Q) + '.lora_up.weight': (32, 4), kohya(TO_Q) + '.lora_down.weight': (4, 32)}, {'ss_base_model_version': 'sdxl_base_v1-0'}, '(SDXL)'),
    ({kohya(TO_Q) + '.lora_up.weight': (32, 4), kohya(TO_Q) + '.lora_down.weight': (4, 32)}, {'modelspec.architecture': 'flux-1-dev/lora'}, '(Flux)'),
    ({kohya(TO_Q) + '.lora_up.weight': (32, 4), kohya(TO_Q) + '.lora_down.weight': (4, 32)}, {'modelspec.prediction_type': 'v'}, 'v_prediction'),
    ({'clip_l': (2, 32), 'clip_g': (2, 48)}, {}, 'SDXL'), ({'clip_g': (2, 48)}, {}, 'SDXL'),
    ({'emb_params': (2, 32)}, {'modelspec.architecture': 'stable-diffusion-xl-v1-base/textual-inversion'}, '(SDXL)'),
])
def test_a_file_for_another_base_says_which(base, tmp_path, keys, meta, said):
    refused(base, write(tmp_path/'a.safetensors', {k: r(*v) for k, v in keys.items()}, meta), said)

def test_the_header_can_be_read_and_may_say_what_it_likes(base, tmp_path):
    f, deltas = pairs(base, [TO_Q])
    meta = {'meta': 'not json', 'ss_base_model_version': 'sd_v1', 'ss_network_module': 'lycoris.kohya', 'modelspec.prediction_type': 'epsilon'}
    exact(base, write(tmp_path/'a.safetensors', f, meta), deltas); assert header(tmp_path/'a.safetensors') == meta
    for text in ('5', '[1]', '"adaptation"', '{'): assert load_tensors(write(tmp_path/'b.safetensors', f, {'meta': text}))[1] == {}

# ---- words

@pytest.mark.parametrize('key, file, prompts', [
    ('emb_params', 'EasyNegative', ('<EasyNegative>', '<easynegative>', '  <EASYNEGATIVE>  ')), ('clip_l', 'Style', ('<Style>', '<style>')),
    ('string_to_param.*', 'x-Y', ('<x-Y>', '<x-y>')), ('*', '<new1>', ('<new1>', '<NEW1>')), ('EasyNegative', 'a', ('EasyNegative', 'easynegative')),
    ('<Cat-Toy>', 'a', ('<Cat-Toy>', '<cat-toy>')), (' <Toy> ', 'a', ('<Toy>', '<toy>')), ('Ünïcode', 'a', ('Ünïcode', 'ünïcode')),
])
def test_all_vectors_of_a_word_enter_the_prompt_however_it_is_written(base, tmp_path, key, file, prompts):
    v = r(3, 32); w = load_adapted(base, write(tmp_path/f'{file}.safetensors', {key: v}))
    for p in prompts: assert torch.equal(rows(w, p), v)
    assert w.spec.token == prompts[0] and same(w, base, 0) and len(w.tokenizer) == len(base.tokenizer) + 3
    sentence, others = rows(w, f'a {prompts[-1]}, b'), rows(base, 'a , b')
    assert torch.equal(sentence, torch.cat([others[:1], v, others[1:]]))
    assert torch.equal(w.text_encoder.get_input_embeddings().weight[:len(base.tokenizer)], base.text_encoder.get_input_embeddings().weight)

def test_a_word_of_letters_counts_only_where_it_stands_alone(mini, tmp_path):
    w = load_adapted(mini, write(tmp_path/'a.safetensors', {'qzx': r(2, 128)}))
    assert torch.equal(w.tokens(['aqzx qzxes']), mini.tokens(['aqzx qzxes'])) and len(rows(w, 'QZX.')) == 3

def test_a_prompt_that_its_words_make_too_long_is_refused(mini, tmp_path):
    w = load_adapted(mini, write(tmp_path/'a.safetensors', {'<a>': r(19, 128)}))
    with pytest.raises(ForgetError, match='has 22 tokens; this world reads 20'): w.tokens(['a dog', 'a <a>'])

@pytest.mark.parametrize('word', ['cat', 'Cat', ' cat ', 'cat</w>', '<|endoftext|>', ''])
def test_a_word_of_the_base_is_refused(mini, tmp_path, word):
    refused(mini, write(tmp_path/'a.safetensors', {word: r(128)}), 'in the base vocabulary already' if word else 'empty')
    f, _ = pairs(mini, attention(mini)[:1])
    if word: refused(mini, write(tmp_path/'b.safetensors', f | {f'bundle_emb.{word}.string_to_param.*': r(2, 128)}), 'vocabulary')

@pytest.mark.parametrize('value, said', [(r(31), 'this base needs [1, 32]'), (r(2, 3, 32), 'kind'), (torch.full((32,), float('nan')), 'non-finite'),
                                         (r(0, 32), 'shape')])
def test_embeddings_that_are_none(base, tmp_path, value, said): refused(base, write(tmp_path/'a.safetensors', {'<a>': value}), said)

def test_words_bundled_in_a_lora(base, tmp_path):
    f, deltas = pairs(base, [TO_Q]); v = r(2, 32)
    w = load_adapted(base, write(tmp_path/'a.safetensors', f | {'bundle_emb.Trig.string_to_param.*': v, 'bundle_emb.b.c.emb_params': r(1, 32)}))
    assert torch.equal(rows(w, 'trig'), v) and w.spec.token == 'Trig' and torch.allclose(w.unet.get_submodule(TO_Q).weight, weight(base, TO_Q) + deltas[TO_Q])
    refused(base, write(tmp_path/'b.safetensors', f | {'bundle_emb.x.clip_l': v, 'bundle_emb.x.clip_g': v.clone()}), 'bundle_emb.x.clip_g')

@pytest.mark.parametrize('lora, emb', [('pytorch_lora_weights', 'my_emb'), ('me', 'me_emb'), ('me', 'other_emb')])
def test_pivotal_tuning_is_a_lora_and_its_words(base, tmp_path, lora, emb):
    f, deltas = pairs(base, [TO_Q], write=lambda n: 'unet.' + n, down='lora_A.weight', up='lora_B.weight'); v = r(2, 32)
    file = write(tmp_path/f'{lora}.safetensors', f); write(tmp_path/f'{emb}.safetensors', {'clip_l': v})
    for path in (tmp_path, file):
        w = load_adapted(base, path)
        assert torch.equal(rows(w, 'a <s0><s1>')[1:], v) and w.spec.token == '<s0><s1>' and len(w.tokenizer) == len(base.tokenizer) + 2
        assert torch.allclose(w.unet.get_submodule(TO_Q).weight, weight(base, TO_Q) + deltas[TO_Q])

def test_an_embedding_of_another_lora_beside_it_is_not_its_own(base, tmp_path):
    f, _ = pairs(base, [TO_Q]); write(tmp_path/'b.safetensors', f); write(tmp_path/'b_emb.safetensors', {'clip_l': r(2, 32)})
    assert len(load_adapted(base, write(tmp_path/'a.safetensors', f)).tokenizer) == len(base.tokenizer)
    assert len(load_adapted(base, tmp_path/'b.safetensors').tokenizer) == len(base.tokenizer) + 2

# ---- folders and files

def test_the_end_of_a_textual_inversion_is_chosen_among_its_steps(base, tmp_path):
    v = r(32); write(tmp_path/'learned_embeds.safetensors', {'<a>': v})
    for n in (500, 1000): write(tmp_path/f'learned_embeds-steps-{n}.safetensors', {'<a>': r(32)})
    assert torch.equal(rows(load_adapted(base, tmp_path), '<a>')[0], v)
    (tmp_path/'learned_embeds.safetensors').unlink(); refused(base, tmp_path, 'choose one', 'learned_embeds-steps-500.safetensors')

def test_the_epochs_of_a_lora_are_a_choice(base, tmp_path):
    f, _ = pairs(base, [TO_Q])
    for n in ('dog-000001', 'dog-000002', 'dog'): write(tmp_path/f'{n}.safetensors', f)
    refused(base, tmp_path, 'choose one', 'dog-000001.safetensors', 'dog.safetensors')
    assert load_adapted(base, tmp_path/'dog.safetensors').label == 'dog'

def test_hidden_files_capital_suffixes_links_and_slashes(base, tmp_path):
    f, deltas = pairs(base, [TO_Q]); (tmp_path/'a').mkdir(); (tmp_path/'a/._x.safetensors').write_bytes(b'\0'*100)
    save_file(f, tmp_path/'a/X.SAFETENSORS'); exact(base, str(tmp_path/'a') + '/', deltas); exact(base, tmp_path/'a/X.SAFETENSORS', deltas)
    (tmp_path/'link').symlink_to(tmp_path/'a'); (tmp_path/'l.safetensors').symlink_to(tmp_path/'a/X.SAFETENSORS'); (tmp_path/'none').symlink_to(tmp_path/'gone')
    exact(base, tmp_path/'link', deltas); exact(base, tmp_path/'l.safetensors', deltas); refused(base, tmp_path/'none', 'link to nothing')
    shutil.copytree(tmp_path/'a', tmp_path/'v1.5'); assert load_adapted(base, tmp_path/'v1.5').label == 'v1.5'

@pytest.mark.parametrize('content, said', [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n', 'git-lfs pointer'), (b'<!DOCTYPE html><html></html>', 'HTML page'),
    (b'', 'is empty'), (b'PK\x03\x04' + b'0'*99, 'pickle'), (b'\x80\x02}q\x00.', 'pickle'), (b'\x08\0\0\0\0\0\0\0{"a":1}', 'cut short'),
])
def test_what_is_no_safetensors_file_says_what_it_is(base, tmp_path, content, said):
    (tmp_path/'a.safetensors').write_bytes(content); refused(base, tmp_path/'a.safetensors', said, 'a.safetensors')

def test_what_cannot_be_read_gives_the_true_reason(base, tmp_path):
    refused(base, write(tmp_path/'e.safetensors', {}), 'holds no tensors')
    (tmp_path/'f').mkdir(); (tmp_path/'f/pytorch_lora_weights.bin').write_bytes(b'x')
    refused(base, tmp_path/'f', 'no whole file of torch.save', 'pytorch_lora_weights.bin')
    (tmp_path/'x.gguf').write_bytes(b'x'); assert 'pickle' not in refused(base, tmp_path/'x.gguf', 'not a safetensors file').split('Expected')[0]
    for key, says in (('cond_stage_model.model.x', ('SD 2', 'from_single_file')), ('conditioner.embedders.0.x', ('XLPipeline.from_single_file',))):
        refused(base, write(tmp_path/'m.safetensors', {'model.diffusion_model.out.2.bias': r(4), key: r(2)}), 'single-file', *says)
    refused(base, write(tmp_path/'n.safetensors', {'conv_in.weight': r(4, 4, 3, 3)}), 'config.json')
    f, _ = pairs(base, [TO_Q]); save_world(base, tmp_path/'p')
    write(tmp_path/'p/pytorch_lora_weights.safetensors', f); refused(base, tmp_path/'p', 'choose one')

# ---- whole networks

@pytest.fixture(scope='module')
def tuned(base): return base.but(unet=shake(base.unet), text_encoder=shake(base.text_encoder))
@pytest.fixture
def folder(tuned, tmp_path): save_world(tuned, tmp_path/'p'); return tmp_path/'p'
def edit(path, **kw): path.write_text(json.dumps({**json.loads(path.read_text()), **kw}))
def stored(w): return {f'{n}.{k}': v for n in ('unet', 'text_encoder') for k, v in getattr(w, n).state_dict().items()}
def alike(a, b): a, b = stored(a), stored(b); return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('variant', ['fp16', 'non_ema'])
def test_the_full_file_comes_before_its_variants(base, tuned, folder, variant):
    for part, cls in (('unet', tuned.unet), ('text_encoder', tuned.text_encoder), ('vae', base.vae)):
        shake(cls).half().save_pretrained(folder/part, variant=variant)
    assert alike(load_adapted(base, folder), tuned) and alike(load_adapted(base, folder/'unet'), base.but(unet=tuned.unet))

def test_a_single_variant_is_read_and_several_are_a_choice(base, tuned, folder):
    for part, name in (('unet', 'diffusion_pytorch_model'), ('vae', 'diffusion_pytorch_model'), ('text_encoder', 'model')):
        f = folder/part/f'{name}.safetensors'; write(folder/part/f'{name}.fp16.safetensors', {k: v.half() for k, v in load_file(f).items()}); f.unlink()
    w = load_adapted(base, folder); assert w.dtype == torch.float32 and same(w, tuned, 2e-2) and not same(w, base, 5e-2)
    shutil.copy(folder/'unet/diffusion_pytorch_model.fp16.safetensors', folder/'unet/diffusion_pytorch_model.non_ema.safetensors')
    refused(base, folder, 'choose one', 'non_ema')

def test_shards_are_read_and_a_missing_one_is_named(base, tuned, folder):
    for part, m in (('unet', tuned.unet), ('text_encoder', tuned.text_encoder)):
        for f in (folder/part).glob('*.safetensors'): f.unlink()
        m.save_pretrained(folder/part, max_shard_size='100KB')
    assert len(list((folder/'unet').glob('*-of-*'))) > 1 and alike(load_adapted(base, folder), tuned)
    shard = sorted((folder/'unet').glob('*-of-*.safetensors'))[1]; shard.unlink(); refused(base, folder, shard.name)

def test_the_text_encoder_may_have_the_old_level_and_positions(base, tuned, folder):
    f = folder/'text_encoder/model.safetensors'; t = {f'text_model.{k.removeprefix("text_model.")}': v for k, v in load_file(f).items()}
    write(f, t | {'text_model.embeddings.position_ids': torch.arange(77)[None]}, {'format': 'pt'}); assert alike(load_adapted(base, folder), tuned)
    write(f, {k: v for k, v in t.items() if 'layers.1.mlp.fc1.bias' not in k}, {'format': 'pt'}); refused(base, folder, 'layers.1.mlp.fc1.bias')
    write(f, t | {'text_projection.weight': r(32, 32)}, {'format': 'pt'}); refused(base, folder, 'text_projection.weight')

def test_a_vae_with_the_names_of_older_diffusers(tmp_path):
    w = tiny_world()
    w = w.but(vae=AutoencoderKL(3, 3, ['DownEncoderBlock2D']*4, ['UpDecoderBlock2D']*4, (8, 8, 16, 16), 1, latent_channels=4, norm_num_groups=4).eval())
    save_world(w, tmp_path/'o'); f = tmp_path/'o/vae/diffusion_pytorch_model.safetensors'; s = load_file(f)
    for a, b in (('to_q', 'query'), ('to_k', 'key'), ('to_v', 'value'), ('to_out.0', 'proj_attn')):
        s = {k.replace(f'mid_block.attentions.0.{a}.', f'mid_block.attentions.0.{b}.'): x for k, x in s.items()}
    assert any('proj_attn' in k for k in s); write(f, s, {'format': 'pt'}); assert alike(load_adapted(w, tmp_path/'o'), w)

def test_a_velocity_pipeline_is_measured_as_one(base, folder):
    edit(folder/'scheduler/scheduler_config.json', prediction_type='v_prediction')
    w = load_adapted(base, folder); assert w.prediction == 'v_prediction' and w.key != base.key and base.prediction == 'epsilon'
    z, e, t = torch.randn(2, *base.latent_shape, generator=G), torch.randn(2, *base.latent_shape, generator=G), torch.tensor([10, 700])
    assert torch.allclose(w.add_noise(z, e, t), base.add_noise(z, e, t)) and torch.allclose(w.epsilon(w.target(z, e, t), w.add_noise(z, e, t), t), e, atol=1e-5)
    assert load_adapted(base, folder/'unet').prediction == 'v_prediction'         # the denoiser alone, with its pipeline around it
    shutil.copytree(folder/'unet', folder.parent/'alone'); assert load_adapted(base, folder.parent/'alone').prediction == 'epsilon'

@pytest.mark.parametrize('change, said', [
    (dict(beta_end=.02), ('beta_end is 0.02', '0.012')), (dict(beta_schedule='linear'), ("'linear'", "'scaled_linear'")),
    (dict(num_train_timesteps=500), ('500', '1000')), (dict(rescale_betas_zero_snr=True), ('rescale_betas_zero_snr is True', 'False')),
    (dict(trained_betas=[.1]*1000), ('trained_betas',)), (dict(prediction_type='sample'), ("'sample'", "'epsilon'")),
    (dict(_class_name='FlowMatchEulerDiscreteScheduler', beta_start=None), ('',)),
])
def test_another_schedule_is_refused_with_both_values(base, folder, change, said):
    edit(folder/'scheduler/scheduler_config.json', **change); refused(base, folder, *said); refused(base, folder/'unet', *said)

def test_how_a_folder_samples_does_not_count(base, tuned, folder):
    edit(folder/'scheduler/scheduler_config.json', _class_name='PNDMScheduler', skip_prk_steps=True, timestep_spacing='trailing', clip_sample=True)
    w = load_adapted(base, folder); assert alike(w, tuned) and w.scheduler.config == base.scheduler.config
    (folder/'scheduler/scheduler_config.json').unlink(); refused(base, folder, 'scheduler')

@pytest.mark.parametrize('part, change, said', [
    ('unet', dict(attention_head_dim=4), ('attention_head_dim', '4', '2')), ('unet', dict(act_fn='gelu'), ("'gelu'", "'silu'")),
    ('unet', dict(norm_num_groups=4), ('norm_num_groups', '4', '8')), ('unet', dict(norm_eps=1e-6), ('norm_eps',)),
    ('unet', dict(flip_sin_to_cos=False), ('flip_sin_to_cos',)), ('unet', dict(freq_shift=1), ('freq_shift',)), ('vae', dict(act_fn='relu'), ('act_fn',)),
    ('vae', dict(scaling_factor=.13025), ('0.13025', '0.18215')), ('vae', dict(norm_num_groups=2), ('norm_num_groups',)),
    ('text_encoder', dict(num_attention_heads=4), ('num_attention_heads', '4', '2')), ('text_encoder', dict(hidden_act='gelu'), ("'gelu'", "'quick_gelu'")),
    ('text_encoder', dict(layer_norm_eps=1e-3), ('layer_norm_eps',)), ('text_encoder', dict(num_hidden_layers=1), ('num_hidden_layers',)),
    ('unet', dict(_class_name='UNet2DModel'), ('UNet2DModel',)),
])
def test_what_shapes_do_not_show_is_compared(base, folder, part, change, said):
    edit(folder/part/'config.json', **change); refused(base, folder, *said)
    if part == 'unet': refused(base, folder/'unet', *said)

def test_fields_without_meaning_do_not_count(base, tuned, folder):
    edit(folder/'unet/config.json', attention_head_dim=[2, 2], sample_size=96, upcast_attention=True, decay=.9999, _diffusers_version='0.10.0')
    edit(folder/'text_encoder/config.json', attention_dropout=.1, transformers_version='4.20.0'); edit(folder/'vae/config.json', sample_size=768)
    c = json.loads((folder/'unet/config.json').read_text()); c.pop('mid_block_type'); (folder/'unet/config.json').write_text(json.dumps(c))
    w = load_adapted(base, folder); assert alike(w, tuned) and w.resolution == base.resolution

def test_a_pipeline_with_a_new_word_brings_it(base, tuned, tmp_path):
    v = r(2, 32); write(tmp_path/'t.safetensors', {'<Toy>': v}); w = load_adapted(tuned, tmp_path/'t.safetensors'); save_world(w, tmp_path/'p')
    back = load_adapted(base, tmp_path/'p'); assert torch.equal(rows(back, '<toy>'), v) and alike(back, w)
    half = load_adapted(base, tmp_path/'p', strength=.5); assert torch.equal(rows(half, '<toy>'), v)
    shutil.copytree(tmp_path/'p', tmp_path/'q'); save_world(base, tmp_path/'b'); shutil.rmtree(tmp_path/'q/text_encoder')
    shutil.copytree(tmp_path/'b/text_encoder', tmp_path/'q/text_encoder'); refused(base, tmp_path/'q', 'rows')

def test_other_pipelines_and_parts(base, folder):
    edit(folder/'model_index.json', _class_name='StableDiffusionXLPipeline', text_encoder_2=['transformers', 'X']); refused(base, folder, 'SDXL')
    (folder/'model_index.json').unlink(); refused(base, folder, 'folder unet')
    refused(base, folder/'vae', 'AutoencoderKL'); refused(base, folder/'text_encoder', 'CLIPTextModel')

# ---- strength

def test_strength_scales_every_difference(base, tuned, folder, tmp_path):
    f, deltas = pairs(base, [TO_Q, RES], alpha=lambda i: 3.); write(tmp_path/'l.safetensors', f); get = lambda w: w.unet.get_submodule(TO_Q).weight
    for path, d in ((tmp_path/'l.safetensors', deltas[TO_Q]), (folder, get(tuned) - get(base)), (folder/'unet', get(tuned) - get(base))):
        for s in (.25, 1.2) if path != folder else (-1,):
            w = load_adapted(base, path, strength=s); assert torch.allclose(get(w), get(base) + s*d, atol=1e-6)
        assert alike(load_adapted(base, path, strength=0), base) and torch.allclose(differences(base, path)[f'unet.{TO_Q}.weight'], d, atol=1e-6)
    for bad in (math.nan, math.inf, '1', None, [1.]): refused(base, tmp_path/'l.safetensors', 'strength', strength=bad)
    refused(base, write(tmp_path/'t.safetensors', {'<a>': r(32)}), 'no strength', strength=.5)

@pytest.mark.parametrize('kind', ['db', 'lora', 'cd', 'oft', 'loha', 'lokr', 'svdiff', 'ti'])
def test_our_own_runs_have_strength_and_differences(base, tmp_path, kind):
    a = Adaptation(kind=kind, text_encoder=kind == 'db'); _, params = adapt(base, a, 'x')
    with torch.no_grad():
        for p in params.values(): p.add_(.1*torch.randn(p.shape, generator=G))
    save_adapted(tmp_path/'adapter.safetensors', base, params, a, 'x')
    for s in (1., .5, 0.):
        w, d = load_adapted(base, tmp_path, strength=s), differences(base, tmp_path)
        made = base.but(unet=clone(base.unet), text_encoder=clone(base.text_encoder))
        with torch.no_grad():
            for k, v in d.items(): part, name = k.split('.', 1); getattr(made, part).get_parameter(name).add_(s*v)
        assert torch.allclose(probe(w, 'a x'), probe(made, 'a x'), atol=1e-5) and (s == 0) == torch.allclose(probe(w, 'a x'), probe(base, 'a x'), atol=1e-6)

def test_merged_by_peft_is_our_sum(base, tmp_path):
    m = get_peft_model(clone(base.unet), PEFTS['lora']); m.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(clone(base.unet), tmp_path).merge_and_unload()
    for k, v in differences(base, tmp_path).items():
        k = k.removeprefix('unet.'); assert torch.allclose(merged.get_parameter(k), base.unet.get_parameter(k) + v, atol=1e-6)

# ---- the real layout

def test_every_real_name_of_stable_diffusion_1_has_one_place():
    "192 layers of the denoiser and 72 of the text encoder that kohya's trainer adapts; nothing is ambiguous."
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    with torch.device('meta'):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    names = layer_names(tiny_world().but(unet=unet, text_encoder=text))
    known = lambda start, ends: {v for k, v in names.items() if k.startswith(start) and k.endswith(ends)}
    inner = ('to_q', 'to_k', 'to_v', 'to_out_0', 'ff_net_0_proj', 'ff_net_2', 'proj_in', 'proj_out')
    assert len({v for v in known('lora_unet_', inner) if 'attentions' in v}) == 192
    assert len(known('lora_te_text_model_encoder_layers_', ('_proj', 'fc1', 'fc2'))) == 72
    assert names['lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj'] == 'unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj'
    assert len({v for v in names.values() if v.startswith('unet.')}) == sum(k.endswith('.weight') for k in unet.state_dict())

def test_words_that_look_like_layers_are_words(base, tmp_path):
    for word in ('<lora_style>', '<soft_light>', '<my_custom_diffusion>', '<dora_scale>'):
        assert load_adapted(base, write(tmp_path/'a.safetensors', {word: r(2, 32)})).spec.token == word

def test_what_a_result_depends_on_is_named(base, tmp_path, folder):
    f, _ = pairs(base, [TO_Q]); x, e = write(tmp_path/'x/x.safetensors', f), write(tmp_path/'x/x_emb.safetensors', {'clip_l': r(1, 32)})
    assert checkpoint_files(x) == [x, e] and checkpoint_files(tmp_path/'x') == [x, e] and checkpoint_files(folder) == [folder]
    assert checkpoint_files(folder/'unet') == [folder/'unet', folder.resolve()/'scheduler/scheduler_config.json']
    get_peft_model(clone(base.unet), PEFTS['lora']).save_pretrained(tmp_path/'peft')
    assert checkpoint_files(tmp_path/'peft') == [tmp_path/'peft/adapter_model.safetensors', tmp_path/'peft/adapter_config.json']

def test_a_lora_under_the_names_of_single_files_says_so(base, tmp_path):
    q = 'lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k'
    said = refused(base, write(tmp_path/'a.safetensors', {q + '.lora_down.weight': r(4, 768), q + '.lora_up.weight': r(320, 4)}), 'original single-file layout')
    assert 'SDXL' not in said

# ---- what loads without an error and means something else

@pytest.mark.parametrize('word', ['a dog', 'a photo of a dog', 'dog, cat', 'dog.', 'A Dog', '(dog)', 'dog - cat'])
def test_text_of_known_words_is_no_new_word(mini, tmp_path, word):
    pieces = mini.tokenizer.tokenize(word); assert all(p.endswith('</w>') for p in pieces), pieces
    refused(mini, write(tmp_path/'a.safetensors', {word: r(128)}), 'words that the base knows')
    f, _ = pairs(mini, attention(mini)[:1]); refused(mini, write(tmp_path/'b.safetensors', f | {f'bundle_emb.{word}.clip_l': r(2, 128)}), 'that the base knows')

@pytest.mark.parametrize('word', ['<dog cat>', '<dog>', 'dog-cat', 'dog_cat', 'dog qzxw', 'S*', '[dog]', 'bad-dog-5'])
def test_a_word_with_something_new_in_it_is_a_new_word(mini, tmp_path, word):
    assert load_adapted(mini, write(tmp_path/'a.safetensors', {word: r(128)})).spec.token == word

@pytest.mark.parametrize('tensors', [{'text_projection.weight': (32, 32)}, {'weight': (1, 32)}, {'bias': (32,)}, {'prompt_embeddings': (4, 32)},
                                     {'up_blocks.1.norm.weight': (32,), 'up_blocks.1.norm.bias': (32,)}, {'a.b': (32,)}])
def test_parameters_are_no_embeddings(base, tmp_path, tensors):
    refused(base, write(tmp_path/'a.safetensors', {k: r(*s) for k, s in tensors.items()}), 'a.safetensors', 'no known kind')

def test_a_peft_folder_is_of_the_kind_that_its_config_says(base, tmp_path):
    f = write(tmp_path/'adapter_model.safetensors', {'prompt_embeddings': r(4, 32)})
    (tmp_path/'adapter_config.json').write_text('{"peft_type": "PROMPT_TUNING"}')
    for path in (tmp_path, f): refused(base, path, 'PROMPT_TUNING', 'not read')
    f.rename(tmp_path/'x.safetensors'); refused(base, tmp_path, 'PROMPT_TUNING')
    write(f, {}); refused(base, f, 'holds no tensors')

def test_the_older_name_of_a_pivotal_embedding_means_the_same(base, tmp_path):
    f, _ = pairs(base, [TO_Q]); v = r(2, 32); write(tmp_path/'x.safetensors', f); write(tmp_path/'x_emb.safetensors', {'text_encoders_0': v})
    w = load_adapted(base, tmp_path); assert torch.equal(rows(w, '<s0><s1>'), v) and w.spec.token == '<s0><s1>'
    write(tmp_path/'x_emb.safetensors', {'text_encoders_0': v, 'text_encoders_1': r(2, 48)}); refused(base, tmp_path, 'text_encoders_1', 'SDXL')

@pytest.fixture
def sides(base, tmp_path):
    u = get_peft_model(clone(base.unet), LoraConfig(r=2, lora_alpha=6, target_modules=['to_q'], init_lora_weights=False)); u.save_pretrained(tmp_path/'s/unet')
    return tmp_path/'s'

def test_an_embedding_beside_peft_folders_is_read(base, sides):
    v = r(2, 32); e = write(sides/'x_emb.safetensors', {'clip_l': v}); w = load_adapted(base, sides)
    assert torch.equal(rows(w, '<s0><s1>'), v) and w.spec.token == '<s0><s1>'
    shutil.move(e, sides/'unet/x_emb.safetensors'); assert torch.equal(rows(load_adapted(base, sides), '<s0><s1>'), v)
    write(sides/'y_emb.safetensors', {'clip_l': v}); refused(base, sides, 'twice')
    write(sides/'z.safetensors', {'<z>': v}); refused(base, sides, 'choose one', 'z.safetensors')

@pytest.mark.parametrize('other', ['dog-000001', 'adapter_model', 'EasyNegative', 'pytorch_custom_diffusion_weights', 'adapter'])
def test_another_file_beside_a_known_name_is_a_choice(base, tmp_path, other):
    f, deltas = pairs(base, [TO_Q]); g = {'EasyNegative': r(2, 32)} if other == 'EasyNegative' else f
    a = write(tmp_path/'pytorch_lora_weights.safetensors', f); write(tmp_path/f'{other}.safetensors', g)
    refused(base, tmp_path, 'choose one', a.name, f'{other}.safetensors'); exact(base, a, deltas)

def test_peft_folders_beside_a_lora_are_a_choice(base, sides):
    write(sides/'pytorch_lora_weights.safetensors', pairs(base, [TO_Q])[0])
    refused(base, sides, 'choose one', 'pytorch_lora_weights.safetensors', 'unet/adapter_model.safetensors')

@pytest.mark.parametrize('config', [LoraConfig(r=8, lora_alpha=8, target_modules=['to_q'], init_lora_weights=False),
                                    LoHaConfig(r=8, alpha=8, target_modules=['to_q'], init_weights=False)], ids=['lora', 'loha'])
def test_a_config_without_alpha_has_the_default_of_peft(base, tmp_path, config):
    m = get_peft_model(clone(base.unet), config); m.save_pretrained(tmp_path); want = differences(base, tmp_path); f = tmp_path/'adapter_config.json'
    assert LoraConfig().lora_alpha == LoraConfig().r == LoHaConfig().alpha == LoHaConfig().r == 8
    f.write_text(json.dumps({k: v for k, v in json.loads(f.read_text()).items() if k not in ('r', 'lora_alpha', 'alpha')}))
    got = differences(base, tmp_path); assert all(torch.equal(got[k], v) for k, v in want.items()) and want

def test_a_config_without_alpha_scales_another_rank_by_eight(base, tmp_path):
    get_peft_model(clone(base.unet), LoraConfig(r=2, lora_alpha=8, target_modules=['to_q'], init_lora_weights=False)).save_pretrained(tmp_path)
    want = differences(base, tmp_path); f = tmp_path/'adapter_config.json'; f.write_text('{"peft_type": "LORA", "r": 2}')
    assert all(torch.equal(differences(base, tmp_path)[k], v) for k, v in want.items())
    f.write_text('{}'); refused(base, tmp_path, 'empty')

@pytest.mark.parametrize('said', [{'unet.lora_alpha': 6, 'unet.r': 2}, {'unet': {'lora_alpha': 6, 'r': 2}}, {'lora_alpha': 6, 'r': 2}, {'unet.lora_alpha': 6}])
def test_the_metadata_of_a_lora_is_read_in_every_layout(base, tmp_path, said):
    f, d = pairs(base, [TO_Q], write=lambda n: 'unet.' + n, down='lora_A.weight', up='lora_B.weight')
    if 'unet.r' not in said and list(said) == ['unet.lora_alpha']:                # peft's rank is 8
        refused(base, write(tmp_path/'a.safetensors', f, {'lora_adapter_metadata': json.dumps(said)}), 'rank 8'); return
    exact(base, write(tmp_path/'a.safetensors', f, {'lora_adapter_metadata': json.dumps(said)}), {TO_Q: 3*d[TO_Q]})

@pytest.mark.parametrize('said, word', [({'transformer.lora_alpha': 6}, 'transformer.lora_alpha'), ({'text_encoder.r': 2}, 'unet.' + TO_Q), ([], 'expected {'),
                                        ({'unet.r': 2, 'lora_alpha': 6}, 'lora_alpha'), ({'unet': 5}, "'unet'"), ({'unet.lora_alpha': '6'}, 'a number')])
def test_metadata_that_is_not_understood_is_named(base, tmp_path, said, word):
    f, _ = pairs(base, [TO_Q], write=lambda n: 'unet.' + n, down='lora_A.weight', up='lora_B.weight')
    refused(base, write(tmp_path/'a.safetensors', f, {'lora_adapter_metadata': json.dumps(said)}), word)

def nudged(vae, size):
    m = clone(vae)
    with torch.no_grad():
        for p in m.parameters(): p.add_(size*torch.sign(torch.randn(p.shape, generator=G)))
    return m
@pytest.mark.parametrize('size', [.0095, .002, 1e-4])
def test_another_vae_is_refused_however_near(base, tmp_path, size):
    save_world(base, tmp_path/'p'); nudged(base.vae, size).save_pretrained(tmp_path/'p/vae'); refused(base, tmp_path/'p', 'another VAE', 'more than rounding')

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_vae_in_half_precision_is_the_same(base, tmp_path, dtype):
    save_world(base, tmp_path/'p'); clone(base.vae).to(dtype).save_pretrained(tmp_path/'p/vae'); assert alike(load_adapted(base, tmp_path/'p'), base)
    half = base.but(vae=clone(base.vae).to(dtype).float()); save_world(base, tmp_path/'q'); assert alike(load_adapted(half, tmp_path/'q'), half)

# ---- one clear error

@pytest.mark.parametrize('meta', [{'adaptation': 'lora'}, {'adaptation': {'kind': 'lora'}}, {'adaptation': {'kind': 'lora'}, 'base': 5, 'token': 'x'},
                                  {'adaptation': {'rank': 3, 'mine': 1}, 'base': 'b', 'token': 'x'}, {'adaptation': None, 'base': 'b', 'token': 'x'}])
def test_only_our_own_header_is_our_own_run(base, tmp_path, meta):
    f, deltas = pairs(base, [TO_Q]); exact(base, write(tmp_path/'a.safetensors', f, {'meta': json.dumps(meta)}), deltas)

SHAPES = ('[]', 'null', '5', '"x"', '{', '')
@pytest.mark.parametrize('content', SHAPES)
@pytest.mark.parametrize('file', ['unet/config.json', 'model_index.json', 'scheduler/scheduler_config.json', 'text_encoder/config.json', 'vae/config.json'])
def test_json_of_another_shape_is_one_error(base, folder, file, content):
    (folder/file).write_text(content); refused(base, folder, file.split('/')[-1], 'damaged')

@pytest.mark.parametrize('content', [*SHAPES, *(json.dumps(c) for c in (
    dict(lora_alpha='8'), dict(r=None), dict(r=2.5), dict(lora_alpha=True), dict(alpha_pattern=[1]), dict(alpha_pattern={'(': 1}),
    dict(alpha_pattern={'a': '1'}),    dict(rank_pattern='x'), dict(peft_type=5), dict(use_rslora='yes'), dict(lora_alpha=math.nan),
    dict(init_lora_weights=[])))])
def test_an_adapter_config_of_wrong_types_is_one_error(base, tmp_path, content):
    f, _ = pairs(base, [TO_Q], write=lambda n: 'base_model.model.' + n, down='lora_A.weight', up='lora_B.weight')
    write(tmp_path/'adapter_model.safetensors', f); (tmp_path/'adapter_config.json').write_text(content); refused(base, tmp_path, 'adapter_')

@pytest.mark.parametrize('content', ['{}', '[]', '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {}}', '{"weight_map": {"a": [1]}}'])
def test_a_shard_index_of_another_shape_is_one_error(base, folder, content):
    (folder/'unet/diffusion_pytorch_model.safetensors').unlink(); (folder/'unet/diffusion_pytorch_model.safetensors.index.json').write_text(content)
    refused(base, folder/'unet', 'index.json', 'damaged')

@pytest.mark.parametrize('part, change', [('scheduler/scheduler_config', dict(_class_name=5)), ('scheduler/scheduler_config', dict(_class_name='__version__')),
                                          ('scheduler/scheduler_config', dict(beta_start='x')), ('scheduler/scheduler_config', dict(prediction_type=[1])),
                                          ('text_encoder/config', dict(text_config=[1])), ('tokenizer/tokenizer_config', dict(model_max_length='x')),
                                          ('unet/config', dict(_class_name=[1]))])
def test_fields_of_wrong_types_are_one_error(base, folder, part, change):
    if change.get('_class_name') == '__version__': (folder/'scheduler/scheduler_config.json').write_text('{"_class_name": "__version__"}')
    edit(folder/f'{part}.json', **change); refused(base, folder)

@pytest.mark.parametrize('path', [None, 5, 'x'*300, 'a\0b', ['a'], '~nobody-of-that-name/x'])
def test_what_is_no_path_is_one_error(base, path): refused(base, path, 'Checkpoint')

# ---- other ways of saving

@pytest.mark.parametrize('bias', ['all', 'lora_only'])
def test_trained_biases_of_peft_are_read(base, tmp_path, bias):
    m = get_peft_model(clone(base.unet), LoraConfig(r=2, lora_alpha=6, bias=bias, target_modules=['to_out.0', 'conv1'], init_lora_weights=False)).eval()
    with torch.no_grad():
        for k, p in m.named_parameters():
            if k.endswith('.bias') and p.requires_grad: p.add_(r(*p.shape))
    m.save_pretrained(tmp_path); assert any('base_layer.bias' in k for k in load_file(tmp_path/'adapter_model.safetensors'))
    assert same(load_adapted(base, tmp_path), base.but(unet=m.merge_and_unload()), 2e-5)

def test_a_network_with_a_lora_attached_says_to_fuse_it(base, folder):
    u = clone(base.unet); u.add_adapter(LoraConfig(r=2, target_modules=['to_q'])); f = folder/'unet/diffusion_pytorch_model.safetensors'
    write(f, u.state_dict()); refused(base, folder/'unet', 'not fused', 'fuse_lora'); refused(base, f, 'not fused')
    clone(base.unet).save_pretrained(folder/'unet'); (folder/'unet/adapter_config.json').write_text('{}'); refused(base, folder, 'choose one')

@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_names_of_wrapped_networks_are_read(base, tuned, folder, prefix):
    f = folder/'unet/diffusion_pytorch_model.safetensors'; write(f, {prefix + k: v for k, v in load_file(f).items()})
    assert alike(load_adapted(base, folder), tuned)
    f, deltas = pairs(base, [TO_Q], write=lambda n: f'unet.{prefix}{n}', down='lora_A.weight', up='lora_B.weight')
    exact(base, write(folder.parent/'l.safetensors', f), deltas)

def test_a_byte_order_mark_does_not_count(base, tuned, folder):
    for f in ('unet/config.json', 'model_index.json', 'scheduler/scheduler_config.json', 'text_encoder/config.json'):
        (folder/f).write_bytes(b'\xef\xbb\xbf' + (folder/f).read_bytes())
    assert alike(load_adapted(base, folder), tuned)

def test_a_shard_alone_says_so(base, tuned, folder):
    tuned.unet.save_pretrained(folder.parent/'u', max_shard_size='100KB')
    for f in (folder.parent/'u').glob('*-of-*.safetensors'): refused(base, f, 'a shard of diffusion_pytorch_model', 'Give the folder')

def test_words_that_are_there_twice_and_embeddings_of_nothing(base, tmp_path):
    refused(base, write(tmp_path/'a.safetensors', {'<Toy>': r(32), '<toy>': r(32)}), 'twice', 'capitals')
    assert 'needs [0' not in refused(base, write(tmp_path/'b.safetensors', {'<a>': r(0, 32)}), 'shape [0, 32]', 'no vector')
    refused(base, write(tmp_path/'c.safetensors', {'clip_l': r(2, 32), 'text_encoders_0': r(2, 32)}), 'clip_l', 'text_encoders_0')

# ---- pickles: the tensors in them, and nothing else

@pytest.fixture
def cache(tmp_path, monkeypatch): monkeypatch.setenv('OWF_CACHE', str(tmp_path/'cache'))

def test_a_lora_in_a_pickle_is_that_lora(base, tmp_path, cache):
    f, deltas = pairs(base, [TO_Q, CONV])
    torch.save(f, tmp_path/'dog.bin'); assert exact(base, tmp_path/'dog.bin', deltas).label == 'dog'
    (tmp_path/'d').mkdir(); torch.save({k: v.half() for k, v in f.items()}, tmp_path/'d/pytorch_lora_weights.bin')
    assert probe(load_adapted(base, tmp_path/'d')).isfinite().all() and checkpoint_kind(tmp_path/'d')[0] == 'lora'
    assert all(p.suffix == '.safetensors' for p in checkpoint_files(tmp_path/'d'))

def test_an_embedding_of_a1111_in_a_pickle_is_called_by_its_file(base, tmp_path, cache):
    v = r(2, 32)
    torch.save({'string_to_param': {'*': torch.nn.Parameter(v)}, 'string_to_token': {'*': 265}, 'name': 'other', 'step': 5}, tmp_path/'my-cat.pt')
    w = load_adapted(base, tmp_path/'my-cat.pt'); assert w.spec.token == '<my-cat>' and w.label == 'my-cat'
    save_file({'emb_params': v}, tmp_path/'my-cat.safetensors')
    assert torch.equal(rows(w, '<my-cat>'), rows(load_adapted(base, tmp_path/'my-cat.safetensors'), '<my-cat>'))

@pytest.mark.parametrize('whole', [True, False])
def test_custom_diffusion_as_diffusers_script_writes_it(base, tmp_path, cache, whole):
    "`.bin` by default: other keys and values, untouched attentions as empty dicts, the word beside it."
    kv = {k: r(*p.shape) for k, p in base.unet.named_parameters() if k.endswith(('attn2.to_k.weight', 'attn2.to_v.weight'))}
    name = lambda k: k.replace('.attn2.to_', '.attn2.processor.to_').replace('.weight', '_custom_diffusion.weight')
    (d := tmp_path/'cd').mkdir(); v = r(32)
    untouched = {'mid_block.attentions.0.transformer_blocks.0.attn1.processor': {}}
    torch.save({**{name(k): t for k, t in kv.items()}, **untouched}, d/'pytorch_custom_diffusion_weights.bin')
    torch.save({'<new1>': v}, d/'<new1>.bin')
    w = load_adapted(base, d if whole else d/'pytorch_custom_diffusion_weights.bin'); own = dict(w.unet.named_parameters())
    assert all(torch.equal(own[k], t) for k, t in kv.items()) and w.spec.token == '<new1>'
    assert torch.equal(w.text_encoder.get_input_embeddings().weight[-1], v)

def test_a_denoiser_in_a_pickle(base, tuned, tmp_path, cache):
    tuned.unet.save_pretrained(tmp_path/'u', safe_serialization=False); assert [p.suffix for p in (tmp_path/'u').glob('diffusion*')] == ['.bin']
    w = load_adapted(base, tmp_path/'u'); assert all(torch.equal(a, b) for a, b in zip(w.unet.parameters(), tuned.unet.parameters()))

def test_a_pickle_with_something_else_gives_the_true_reason(base, tmp_path, cache):
    "In the words of what was given, not of the copy; nothing runs."
    torch.save({'mid_block.attentions.7.to_q.lora_A.weight': r(2, 32), 'mid_block.attentions.7.to_q.lora_B.weight': r(32, 2)}, tmp_path/'far.bin')
    assert 'cache' not in refused(base, tmp_path/'far.bin', 'far.bin', 'another base')
    torch.save({'w': torch.nn.Linear(1, 1)}, tmp_path/'code.ckpt'); refused(base, tmp_path/'code.ckpt', 'runs code', 'torch.nn.modules.linear.Linear')
    torch.save({'state_dict': {'model.diffusion_model.out.2.bias': r(4), 'cond_stage_model.transformer.x': r(2)}}, tmp_path/'sd.ckpt')
    refused(base, tmp_path/'sd.ckpt', 'sd.ckpt', 'denoiser')

# ---- single files: Stable Diffusion 1 under the names of its first code

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_single_file_is_its_denoiser_and_text_encoder(base, tuned, tmp_path, dtype):
    w = load_adapted(base, write(tmp_path/'dream.safetensors', single_file(tuned, dtype)))
    assert w.label == 'dream' and checkpoint_kind(tmp_path)[0] == 'single'
    for part in ('unet', 'text_encoder'):
        want = getattr(tuned, part).state_dict(); assert all(torch.equal(v, want[k].to(dtype).float()) for k, v in getattr(w, part).state_dict().items())
    assert w.vae is base.vae and set(differences(base, tmp_path/'dream.safetensors'))
    half = load_adapted(base, tmp_path/'dream.safetensors', strength=.5); a, b, c = (next(x.unet.parameters()) for x in (base, half, w))
    assert torch.allclose(b, (a + c)/2, atol=1e-6)

def test_a_single_file_is_what_diffusers_makes_of_it(base, tuned, folder, tmp_path):
    "On the mini world: diffusers' own reader of single files gives the same network."
    from diffusers import UNet2DConditionModel
    f = write(tmp_path/'one.safetensors', single_file(tuned))
    theirs = UNet2DConditionModel.from_single_file(str(f), config=str(folder), subfolder='unet', local_files_only=True).state_dict()
    ours = load_adapted(base, f).unet.state_dict(); assert set(ours) == set(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)

def test_a_single_file_with_another_vae_or_without_text_says_so(base, tuned, tmp_path, capsys):
    f = {k: v for k, v in single_file(tuned).items() if not k.startswith('cond_stage')}
    load_adapted(base, write(tmp_path/'a.safetensors', {**f, 'first_stage_model.quant_conv.weight': r(8, 8, 1, 1)}))
    said = capsys.readouterr().out; assert 'another VAE' in said and 'no text encoder' in said

def test_a_single_file_of_another_architecture_or_cut_is_refused(base, mini, tuned, tmp_path):
    f = single_file(tuned); cut = {k: v for k, v in f.items() if k != 'model.diffusion_model.out.2.bias'}
    refused(base, write(tmp_path/'cut.safetensors', cut), '1 tensors of its denoiser', 'conv_out.bias')
    refused(mini, write(tmp_path/'far.safetensors', f), 'another')
