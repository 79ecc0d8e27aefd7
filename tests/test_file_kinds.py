"""Every kind of checkpoint that people have, once: read exactly, or refused with the true reason. The table of the documentation is made of these
cases: `python tests/test_file_kinds.py` writes it anew. Below, the names and shapes of the real Stable Diffusion 1.5, without its weights."""
import copy
import functools
import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import IA3Config, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from openworld_forget.audit.series import epochs
from openworld_forget.core import ForgetError
from openworld_forget.training.adapt import Adaptation, adapt, save_adapted
from openworld_forget.training.checkpoints import TEXT_OF, _file_kind, _today, checkpoint_kind, differences, load_adapted
from openworld_forget.training.deltas import EXPECTED, layer_names
from openworld_forget.worlds.load import clone
from openworld_forget.worlds.tiny import save_world, tiny_world
from wild import (
    ATTENTION, CONV, NORM, RES, TEXT, TO_Q, attention, first_names, kohya, pairs, r, rows, same, shake, single_file, single_vae, tucker, weight, write,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT/'nbs/reference/file_kinds.md'
ROUNDING = 1e-6             # (the page says so) of sums in float32 that were added in another order, relative to the largest number of the parameter

@functools.cache
def base(): return tiny_world()
@functools.cache
def tuned(): return base().but(unet=shake(base().unet), text_encoder=shake(base().text_encoder))

# ---------------------------------------------------------------- what a file means, by hand
def parameters(w): return {f'{part}.{k}': p.detach() for part in ('unet', 'text_encoder') for k, p in getattr(w, part).named_parameters()}

@dataclass
class Means:
    "What a file makes of the base: whole parameters, and words with their vectors. All else stays."
    path: Path
    params: dict
    words: dict = None

def added(path, deltas, biases=(), words=None):
    "W + dW for differences of layers."
    own, out = parameters(base()), {}
    for end, given in (('weight', deltas), ('bias', dict(biases))):
        for name, d in given.items():
            k = next(f'{part}.{name}.{end}' for part in ('unet', 'text_encoder') if f'{part}.{name}.{end}' in own)
            out[k] = own[k] + d.reshape(own[k].shape)
    return Means(path, out, words)

def replaced(path, *parts, stored=lambda v: v):
    "All parameters of some parts are those of the tuned world, as they were stored."
    return Means(path, {k: stored(v) for k, v in parameters(tuned()).items() if k.split('.')[0] in parts})

def error(m):
    "The largest error of what is read against what is meant, relative to the largest number of each parameter; what stays must stay to the bit."
    w, own, worst = load_adapted(base(), m.path), parameters(base()), 0.
    d = differences(base(), m.path)
    assert set(d) == {k for k, v in m.params.items() if not torch.equal(v, own[k])}
    got = parameters(w)
    if got.keys() != own.keys():                                        # our own LoRA stays beside the weights: compare what it predicts
        made = base().but(unet=clone(base().unet))
        made.unet.load_state_dict({k.removeprefix('unet.'): m.params.get(k, v) for k, v in own.items() if k.startswith('unet.')})
        assert same(w, made) and not same(w, base(), 1e-4)
        got = own | {k: own[k] + v for k, v in d.items()}
    for k, q in own.items():
        p = got[k][:len(q)] if m.words else got[k]                      # further rows are new words
        if k not in m.params: assert torch.equal(p, q), k; continue
        for x in (p, q + d[k] if k in d else q): worst = max(worst, ((x - m.params[k]).abs().max()/m.params[k].abs().max()).item())
    for word, vectors in (m.words or {}).items(): assert torch.equal(rows(w, word), torch.atleast_2d(vectors))
    return worst

# ---------------------------------------------------------------- the cases
@dataclass
class Case:
    name: str               # as people call it
    inside: str             # how it is known
    make: object            # a folder -> what it means, several of it, or a path
    kind: str = ''          # as which it is read; nothing: it is refused
    says: tuple = ()        # what the refusal must say: the reason, and what to do

CASES = []
def reads(name, inside, kind): return lambda f: CASES.append(Case(name, inside, f, kind)) or f
def refuses(name, inside, *says): return lambda f: CASES.append(Case(name, inside, f, says=says)) or f

K = kohya(TO_Q)
def lora(**kw): return pairs(base(), attention(base()), lambda i: 2 + i % 3, lambda i: 1.5*(1 + i % 3), **kw)
def plain(**kw): return pairs(base(), attention(base()), write=lambda n: f'unet.{n}', down='lora_A.weight', up='lora_B.weight', **kw)
def pickled(path, x): path.parent.mkdir(parents=True, exist_ok=True); torch.save(x, path); return path
def half(v): return v.half().float()
def of_one(layer, tensors, delta, alpha=None, rank=1):
    "The tensors of one layer under kohya's name, and its difference."
    f = {f'{kohya(layer)}.{k}': v for k, v in tensors.items()} | ({kohya(layer) + '.alpha': torch.tensor(float(alpha))} if alpha else {})
    return f, {layer: (alpha/rank if alpha else 1)*delta}

@reads('LoRA of kohya\'s trainer, SD 1.x', '`lora_unet_….lora_down.weight`, `.alpha`; ranks and alphas of their own', 'lora')
def _(d):
    f, deltas = lora()
    return added(write(d/'dog.safetensors', f, {'ss_base_model_version': 'sd_v1', 'ss_network_module': 'networks.lora'}), deltas)

@reads('the same in half precision', 'float16', 'lora')
def _(d):
    A, B = r(4, 32).half(), r(32, 4).half()
    f, deltas = of_one(TO_Q, {'lora_down.weight': A, 'lora_up.weight': B}, B.float() @ A.float(), 2, 4)
    return added(write(d/'dog.safetensors', {k: v.half() for k, v in f.items()}), deltas)

@reads('LoRA with text encoder', '`lora_te_text_model_encoder_…` besides', 'lora')
def _(d):
    f, deltas = lora()
    g, more = pairs(base(), [TEXT, 'encoder.layers.1.mlp.fc1'], alpha=lambda i: 3., write=lambda n: kohya(f'text_model.{n}', 'lora_te'))
    return added(write(d/'dog.safetensors', f | g), deltas | more)

@reads('LoRA in a pickle', '`.pt`, the alpha a plain number', 'lora')
def _(d):
    f, deltas = pairs(base(), [TO_Q, CONV], alpha=lambda i: 3.)
    return added(pickled(d/'dog.pt', {k: v.item() if k.endswith('.alpha') else v for k, v in f.items()}), deltas)

@reads('LoRA of diffusers, with metadata', '`unet.….lora_A.weight`, `lora_adapter_metadata` in the header', 'lora')
def _(d):
    u = clone(base().unet); u.add_adapter(LoraConfig(r=4, lora_alpha=10, target_modules=list(ATTENTION), init_lora_weights=False))
    state = get_peft_model_state_dict(u)
    StableDiffusionPipeline.save_lora_weights(d/'out', convert_state_dict_to_diffusers(state), unet_lora_adapter_metadata=u.peft_config['default'].to_dict())
    return added(d/'out', {n: 2.5*state[f'{n}.lora_B.weight'] @ state[f'{n}.lora_A.weight'] for n in attention(base())})

@reads('LoRA of diffusers, without metadata', '`unet.….lora_A.weight`; its scale is 1', 'lora')
def _(d):
    f, deltas = plain()
    return added(write(d/'pytorch_lora_weights.safetensors', f), deltas)

@reads('peft\'s folder', '`adapter_model.safetensors`, `adapter_config.json`', 'lora')
def _(d):
    m = get_peft_model(clone(base().unet), LoraConfig(r=4, lora_alpha=10, target_modules=['to_q', 'conv1'], init_lora_weights=False))
    m.save_pretrained(d/'out'); f = load_file(d/'out/adapter_model.safetensors'); name = 'base_model.model.{}.lora_{}.weight'.format
    layers = [k[17:-14] for k in f if k.endswith('lora_A.weight')]
    pair = lambda n: (f[name(n, 'B')].flatten(1) @ f[name(n, 'A')].flatten(1)).reshape(weight(base(), n).shape)
    return added(d/'out', {n: 2.5*pair(n) for n in layers})

@reads('peft\'s folders of denoiser and text encoder', '`unet/` and `text_encoder/`, each with its `adapter_config.json`', 'peft')
def _(d):
    deltas = {}
    for part, name in (('unet', TO_Q), ('text_encoder', TEXT)):
        A, B = r(2, 32), r(32, 2); deltas[name] = 3*B @ A
        keys = {f'base_model.model.{name}.lora_A.weight': A, f'base_model.model.{name}.lora_B.weight': B}
        write(d/'out'/part/'adapter_model.safetensors', keys)
        (d/'out'/part/'adapter_config.json').write_text(json.dumps(dict(peft_type='LORA', r=2, lora_alpha=6)))
    return added(d/'out', deltas)

@reads('LoCon', '3x3 convolutions', 'lora')
def _(d):
    f, deltas = pairs(base(), [RES, CONV, TO_Q], lambda i: 4, lambda i: 2.)
    return added(write(d/'dog.safetensors', f), deltas)

@reads('LoCon with `lora_mid` (Tucker)', '`lora_up`, `lora_mid`, `lora_down`', 'lora')
def _(d):
    up, mid, down = r(32, 4, 1, 1), r(4, 4, 3, 3), r(4, 32, 1, 1)
    f, deltas = of_one(RES, {'lora_up.weight': up, 'lora_mid.weight': mid, 'lora_down.weight': down},
                       tucker(mid, up[..., 0, 0].T, down[..., 0, 0]), 2, 4)
    return added(write(d/'dog.safetensors', f), deltas)

@reads('LoHa', '`hada_w1_a`, `hada_w1_b`, `hada_w2_a`, `hada_w2_b`', 'lora')
def _(d):
    a, b, e, g = r(32, 4), r(4, 32), r(32, 4), r(4, 32)
    f, deltas = of_one(TO_Q, dict(hada_w1_a=a, hada_w1_b=b, hada_w2_a=e, hada_w2_b=g), (a @ b)*(e @ g), 3, 4)
    return added(write(d/'dog.safetensors', f), deltas)

@reads('LoKr', '`lokr_w1`, `lokr_w2_a`, `lokr_w2_b`', 'lora')
def _(d):
    w1, a, b = r(4, 4), r(8, 2), r(2, 8)
    f, deltas = of_one(TO_Q, dict(lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b), torch.kron(w1, a @ b), 3, 2)
    return added(write(d/'dog.safetensors', f), deltas)

@reads('DoRA', '`dora_scale` besides', 'lora')
def _(d):
    W, A, B, size = weight(base(), TO_Q), r(4, 32), r(32, 4), r(32, 1) + 2
    f, deltas = of_one(TO_Q, {'lora_down.weight': A, 'lora_up.weight': B}, B @ A, 2, 4); V = W + deltas[TO_Q]
    return added(write(d/'dog.safetensors', f | {K + '.dora_scale': size}), {TO_Q: size*V/V.norm(dim=1, keepdim=True) - W})

@reads('full differences, norms, biases', '`diff`, `diff_b`, `w_norm`, `b_norm`', 'lora')
def _(d):
    f = {kohya(RES) + '.diff': r(32, 32, 3, 3), kohya(RES) + '.diff_b': r(32), kohya(NORM) + '.w_norm': r(32), kohya(NORM) + '.b_norm': r(32)}
    a, b, w, c = f.values()
    return added(write(d/'dog.safetensors', f), {RES: a, NORM: w}, {RES: b, NORM: c})

@reads('LoRA with a bundled embedding', '`bundle_emb.<word>.string_to_param.*` besides', 'lora')
def _(d):
    (f, deltas), v = pairs(base(), [TO_Q]), r(2, 32)
    return added(write(d/'dog.safetensors', f | {'bundle_emb.Trig.string_to_param.*': v}), deltas, words={'Trig': v})

@reads('LoRA with the embedding of pivotal tuning', '`*_emb.safetensors` beside it', 'lora')
def _(d):
    (f, deltas), v = plain(), r(2, 32)
    write(d/'out/dog_emb.safetensors', {'clip_l': v})
    return added(write(d/'out/pytorch_lora_weights.safetensors', f), deltas, words={'<s0><s1>': v})

@reads('textual inversion of diffusers', '`learned_embeds.safetensors`: the word, its vectors', 'inversion')
def _(d): return Means(write(d/'learned_embeds.safetensors', {'<toy>': (v := r(2, 32))}), {}, {'<toy>': v})

@reads('the same in a pickle', '`learned_embeds.bin`', 'inversion')
def _(d): return Means(pickled(d/'learned_embeds.bin', {'<toy>': (v := r(32))}), {}, {'<toy>': v})

@reads('embedding of A1111', '`emb_params`; the word is the file\'s name', 'inversion')
def _(d): return Means(write(d/'EasyNegative.safetensors', {'emb_params': (v := r(3, 32))}), {}, {'<EasyNegative>': v})

@reads('embedding of A1111, `.pt`', '`string_to_param`; the word is the file\'s name', 'inversion')
def _(d):
    x = {'string_to_param': {'*': torch.nn.Parameter(v := r(2, 32))}, 'string_to_token': {'*': 265}, 'name': 'other', 'step': 5}
    return Means(pickled(d/'my-cat.pt', x), {}, {'<my-cat>': v})

def custom():
    "The tensors of a Custom Diffusion under diffusers' names, the parameters that they are, and a word."
    kv = {f'unet.{k}': r(*p.shape) for k, p in base().unet.named_parameters() if k.endswith(('attn2.to_k.weight', 'attn2.to_v.weight'))}
    name = lambda k: k[5:].replace('.attn2.to_', '.attn2.processor.to_').replace('.weight', '_custom_diffusion.weight')
    return {name(k): v for k, v in kv.items()}, kv, r(32)

@reads('Custom Diffusion, `.bin`', '`pytorch_custom_diffusion_weights.bin`, `<new1>.bin`; diffusers\' default', 'custom')
def _(d):
    f, kv, v = custom()
    pickled(d/'out/pytorch_custom_diffusion_weights.bin', f | {'mid_block.attentions.0.transformer_blocks.0.attn1.processor': {}})
    pickled(d/'out/<new1>.bin', {'<new1>': v})
    return Means(d/'out', kv, {'<new1>': v})

@reads('Custom Diffusion, safetensors', '`pytorch_custom_diffusion_weights.safetensors`, `<new1>.safetensors`', 'custom')
def _(d):
    f, kv, v = custom()
    write(d/'out/pytorch_custom_diffusion_weights.safetensors', f); write(d/'out/<new1>.safetensors', {'<new1>': v})
    return Means(d/'out', kv, {'<new1>': v})

@reads('folder of a UNet', '`config.json`, `diffusion_pytorch_model.safetensors`', 'unet')
def _(d): tuned().unet.save_pretrained(d/'unet'); return replaced(d/'unet', 'unet')

@reads('the same in a pickle', '`diffusion_pytorch_model.bin`', 'unet')
def _(d): tuned().unet.save_pretrained(d/'unet', safe_serialization=False); return replaced(d/'unet', 'unet')

@reads('the same, only as variant', '`diffusion_pytorch_model.fp16.safetensors`', 'unet')
def _(d): clone(tuned().unet).half().save_pretrained(d/'unet', variant='fp16'); return replaced(d/'unet', 'unet', stored=half)

@reads('the same in shards', '`…-00001-of-0000n.safetensors`, `.index.json`', 'unet')
def _(d):
    tuned().unet.save_pretrained(d/'unet', max_shard_size='100KB'); assert len(list((d/'unet').glob('*-of-*'))) > 1
    return replaced(d/'unet', 'unet')

@reads('folder of a pipeline', '`model_index.json`', 'pipeline')
def _(d): save_world(tuned(), d/'out'); return replaced(d/'out', 'unet', 'text_encoder')

@reads('single file of SD 1.x', '`model.diffusion_model.…`, `cond_stage_model.…`, `first_stage_model.…`, `model_ema.…`', 'single')
def _(d):
    more = {'model_ema.decay': r(1)[0], 'model_ema.diffusion_modelout2bias': r(4), 'betas': r(1000)}
    return replaced(write(d/'dream.safetensors', single_file(tuned()) | single_vae(base().vae) | more), 'unet', 'text_encoder')

@reads('the same in half precision', 'float16', 'single')
def _(d): return replaced(write(d/'dream.safetensors', single_file(tuned(), torch.float16)), 'unet', 'text_encoder', stored=half)

@reads('the same in a pickle', '`.ckpt`, the weights under `state_dict`', 'single')
def _(d): return replaced(pickled(d/'dream.ckpt', {'state_dict': single_file(tuned()), 'global_step': 9}), 'unet', 'text_encoder')

def own_run(kind, d):
    a = Adaptation(kind=kind, text_encoder=kind == 'db'); _, params = adapt(base(), a, 'x')
    with torch.no_grad():
        for p in params.values(): p.add_(r(*p.shape)/2)
    save_adapted(d/'run/adapter.safetensors', base(), params, a, 'x')
    return a, load_file(d/'run/adapter.safetensors')

@reads('own run, DreamBooth', '`adapter.safetensors`', 'own')
def _(d):
    _, f = own_run('db', d); f = {re.sub('^text[.]', 'text_encoder.', k): v for k, v in f.items()}
    return Means(d/'run', {k: f[k] for k in parameters(base()) if k in f})

@reads('own run, LoRA', '`adapter.safetensors`', 'own')
def _(d):
    a, f = own_run('lora', d); layers = [k[5:-14] for k in f if k.endswith('.lora_A.weight')]
    return added(d/'run', {n: a.alpha/a.rank*f[f'unet.{n}.lora_B.weight'] @ f[f'unet.{n}.lora_A.weight'] for n in layers})

@reads('checkpoints of one training', '`checkpoint-*/` with optimizer and random states, the end beside them', 'lora')
def _(d):
    means = {}
    for folder in ('out/checkpoint-1000', 'out/checkpoint-500', 'out'):
        f, deltas = plain(); write(d/folder/'pytorch_lora_weights.safetensors', f)
        if folder != 'out':
            pickled(d/folder/'optimizer.bin', {'state': {0: r(2)}}); pickled(d/folder/'scheduler.bin', {'step': 5})
            (d/folder/'random_states_0.pkl').write_bytes(b'\x80\x04N.')
        means[d/folder] = added(d/folder, deltas)
    assert [m.label for m in epochs(d/'out')] == ['checkpoint-500', 'checkpoint-1000', 'final']
    return [means[Path(m.file)] for m in epochs(d/'out')]

@reads('the same, all in pickles', '`checkpoint-*/pytorch_lora_weights.bin`', 'lora')
def _(d):
    f, deltas = plain(); folder = d/'checkpoint-500'
    pickled(folder/'pytorch_lora_weights.bin', f); pickled(folder/'optimizer.bin', {'state': {0: r(2)}}); pickled(folder/'scheduler.bin', {'step': 5})
    (folder/'random_states_0.pkl').write_bytes(b'not of torch.save')
    return added(folder, deltas)

# ---- of another base
def made(**shapes): return {k: r(*s) for k, s in shapes.items()}
XL = 'lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k'

@refuses('LoRA of SDXL', '`lora_unet_input_blocks_…`, `lora_te2_…`; reads text of width 2048', 'made for another base (SDXL)')
def _(d):
    te = 'lora_te2_text_model_encoder_layers_0_mlp_fc1'
    f = made(**{f'{XL}.lora_down.weight': (4, 2048), f'{XL}.lora_up.weight': (640, 4), f'{te}.lora_down.weight': (4, 1280), f'{te}.lora_up.weight': (5120, 4)})
    return write(d/'dog.safetensors', f)

@refuses('LoRA of SDXL that says so', '`ss_base_model_version` in its header', 'made for another base (SDXL)', 'Its header says so')
def _(d): return write(d/'dog.safetensors', pairs(base(), [TO_Q])[0], {'ss_base_model_version': 'sdxl_base_v1-0'})

@refuses('LoRA of SD 2', 'the names of SD 1; reads text of width 1024', 'made for another base (SD 2)')
def _(d):
    k = kohya(TO_Q.replace('attn1.to_q', 'attn2.to_k'))
    return write(d/'dog.safetensors', made(**{f'{k}.lora_down.weight': (4, 1024), f'{k}.lora_up.weight': (32, 4)}))

@refuses('LoRA of Flux, kohya', '`lora_unet_double_blocks_…`', 'made for another base (Flux, SD 3')
def _(d):
    k = 'lora_unet_double_blocks_0_img_attn_qkv'
    return write(d/'dog.safetensors', made(**{f'{k}.lora_down.weight': (4, 3072), f'{k}.lora_up.weight': (9216, 4)}))

@refuses('LoRA of SD 3 or Flux, diffusers', '`transformer.transformer_blocks.…`', 'made for another base (Flux, SD 3')
def _(d):
    k = 'transformer.transformer_blocks.0.attn.to_q'
    return write(d/'dog.safetensors', made(**{f'{k}.lora_A.weight': (4, 1536), f'{k}.lora_B.weight': (1536, 4)}))

@refuses('embedding of SDXL', '`clip_l`, `clip_g`', "'clip_g'", 'another base (SDXL')
def _(d): return write(d/'EasyNegative.safetensors', made(clip_l=(2, 768), clip_g=(2, 1280)))

ATTN2 = 'model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight'
@refuses('single file of SDXL', '`conditioner.embedders.…`', 'SDXL', 'convert it once', 'StableDiffusionXLPipeline.from_single_file')
def _(d): return write(d/'xl.safetensors', made(**{ATTN2: (1280, 2048), 'conditioner.embedders.0.transformer.text_model.x': (2,)}))

@refuses('single file of SD 2', '`cond_stage_model.model.…`', 'SD 2', 'convert it once', 'from_single_file')
def _(d): return write(d/'two.safetensors', made(**{ATTN2: (1280, 1024), 'cond_stage_model.model.ln_final.weight': (1024,)}))

@refuses('single file of Flux or SD 3', '`model.diffusion_model.double_blocks.…`', 'another base (Flux, SD 3')
def _(d): return write(d/'f.safetensors', made(**{'model.diffusion_model.double_blocks.0.img_attn.qkv.weight': (9, 3), 'first_stage_model.x': (2,)}))

@refuses('pipeline of SDXL', '`model_index.json` with `text_encoder_2`', 'StableDiffusionXLPipeline', 'another base (SDXL)')
def _(d):
    save_world(base(), d/'out'); f = d/'out/model_index.json'; parts = json.loads(f.read_text())
    f.write_text(json.dumps({**parts, '_class_name': 'StableDiffusionXLPipeline', 'text_encoder_2': ['transformers', 'CLIPTextModel']}))
    return d/'out'

@refuses('pipeline with another VAE', '`vae/` differs by more than rounding', 'another VAE', 'Put the base\'s VAE into it')
def _(d):
    vae = clone(base().vae)
    with torch.no_grad(): vae.encoder.conv_in.bias[0] += .5
    save_world(base().but(vae=vae), d/'out'); return d/'out'

# ---- kinds that are not read
@refuses('IA3, peft', '`adapter_config.json` says so', 'not read: peft IA3', 'Merge it')
def _(d): get_peft_model(clone(base().unet), IA3Config(target_modules=['to_k'], feedforward_modules=[])).save_pretrained(d/'out'); return d/'out'

@refuses('IA3, LyCORIS', '`on_input`', 'not read: IA3', 'Merge it')
def _(d): return write(d/'dog.safetensors', {f'{K}.weight': r(32), f'{K}.on_input': torch.tensor(True)})

@refuses('OFT, peft', '`adapter_config.json` says so', 'not read: peft OFT', 'Merge it')
def _(d):
    f = write(d/'out/adapter_model.safetensors', {f'base_model.model.{TO_Q}.oft_R.weight': r(4, 28)})
    (d/'out/adapter_config.json').write_text('{"peft_type": "OFT", "r": 4}'); return f.parent

@refuses('OFT and BOFT, LyCORIS or kohya', '`oft_blocks`', 'not read: OFT', 'Merge it')
def _(d): return write(d/'dog.safetensors', made(**{f'{K}.oft_blocks': (2, 4, 8, 8), f'{K}.rescale': (32, 1)}))

@refuses('GLoRA', '`a1.weight`, `b1.weight`', 'not read: GLoRA', 'Merge it')
def _(d): return write(d/'dog.safetensors', made(**{f'{K}.{x}.weight': (4, 4) for x in ('a1', 'a2', 'b1', 'b2')}))

@refuses('VeRA', '`adapter_config.json` says so', 'not read: peft VERA', 'Merge it')
def _(d):
    f = write(d/'out/adapter_model.safetensors', made(**{'base_model.vera_A': (4, 32), f'base_model.model.{TO_Q}.vera_lambda_b': (32,)}))
    (d/'out/adapter_config.json').write_text('{"peft_type": "VERA", "r": 4}'); return f.parent

@refuses('early LoRA of cloneofsimo', '`.pt`: a list of tensors', 'lists', 'cloneofsimo', 'merge it')
def _(d): return pickled(d/'dog.pt', [r(32, 4), r(4, 32)])

@refuses('the same as safetensors', '`unet:0:up`', 'not read: an early LoRA', 'Merge it')
def _(d): return write(d/'dog.safetensors', made(**{'unet:0:up': (32, 4), 'unet:0:down': (4, 32)}))

@refuses('ControlNet LLLite', '`lllite_unet_…`', 'a ControlNet (LLLite)', 'input beside a model')
def _(d): return write(d/'c.safetensors', made(**{'lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight': (16, 3, 4, 4)}))

@refuses('ControlNet', '`control_model.…`', 'a ControlNet', 'input beside a model')
def _(d): return write(d/'c.safetensors', made(**{'control_model.input_blocks.0.0.weight': (16, 4, 3, 3)}))

@refuses('a VAE alone', '`first_stage_model.…`', 'no denoiser', 'whole model')
def _(d): return write(d/'vae.safetensors', single_vae(base().vae))

@refuses('weights of a UNet without config', '`conv_in.weight` and others', 'without its config', 'config.json')
def _(d): return write(d/'unet.safetensors', base().unet.state_dict())

@refuses('UNet with a LoRA attached', '`base_layer.weight`', 'not fused', 'fuse_lora')
def _(d):
    u = clone(base().unet); u.save_pretrained(d/'unet'); u.add_adapter(LoraConfig(r=2, target_modules=['to_q']))
    write(d/'unet/diffusion_pytorch_model.safetensors', u.state_dict()); return d/'unet'

@refuses('LoRA in 8 bits', 'int8', 'holds int8 numbers', 'quantized files are not read', 'float16 or float32')
def _(d): return write(d/'dog.safetensors', {k: (99*v).to(torch.int8) for k, v in pairs(base(), [TO_Q])[0].items()})

@refuses('UNet in 8 bits', 'int8, `SCB`', 'holds int8 numbers', 'quantized files are not read', 'float16 or float32')
def _(d):
    base().unet.save_pretrained(d/'unet'); f = d/'unet/diffusion_pytorch_model.safetensors'; t = load_file(f)
    flat = [k for k, v in t.items() if k.endswith('.weight') and v.ndim == 2]
    write(f, t | {k: (99*t[k]).to(torch.int8) for k in flat} | {k.replace('.weight', '.SCB'): t[k][:, 0].clone() for k in flat}); return d/'unet'

@refuses('GGUF', '`.gguf`', 'GGUF', 'quantized', 'float16 or float32')
def _(d): (d/'unet.gguf').write_bytes(b'GGUF\3\0\0\0'); return d/'unet.gguf'

# ---- unsafe, damaged, a choice
class Harm:
    "What runs when its pickle is read."
    def __reduce__(self): return os.mkdir, (str(Path(tempfile.gettempdir())/'harmed'),)

@refuses('pickle that runs code', '`.ckpt`', 'runs code', 'mkdir', 'Save its tensors as safetensors')
def _(d): return pickled(d/'dream.ckpt', {'state_dict': {'w': r(2)}, 'more': Harm()})

def cut(f, part): f.write_bytes(f.read_bytes()[:int(f.stat().st_size*part)]); return f
@refuses('cut short', 'half of a safetensors file', 'cut short or damaged', 'Download it')
def _(d): return cut(write(d/'dog.safetensors', lora()[0]), .5)

@refuses('cut short, with a header of any length', 'its first byte that of a pickle', 'cut short or damaged', 'Download it')
def _(d): (d/'dog.safetensors').write_bytes((2**12 + 128).to_bytes(8, 'little') + b'{"a":'); return d/'dog.safetensors'

@refuses('cut short, pickle', 'half of a `.bin`', 'cut short', 'Download it')
def _(d): return cut(pickled(d/'dog.bin', lora()[0]), .5)

@refuses('one half of a LoRA pair', 'a layer without `lora_up`', 'both halves', 'damaged')
def _(d): return write(d/'dog.safetensors', {k: v for k, v in pairs(base(), [TO_Q])[0].items() if 'down' in k})

@refuses('not a number', 'NaN', 'non-finite', 'make it again')
def _(d): return write(d/'dog.safetensors', {k: v*float('nan') for k, v in pairs(base(), [TO_Q])[0].items()})

@refuses('web page saved as a file', '`<!doctype html>`', 'HTML page', 'download it again')
def _(d): (d/'dog.safetensors').write_text('<!DOCTYPE html><html></html>'); return d/'dog.safetensors'

@refuses('web page saved as a pickle', '`<!doctype html>`', 'HTML page', 'download it again')
def _(d): (d/'dream.ckpt').write_text('<!DOCTYPE html><html></html>'); return d/'dream.ckpt'

@refuses('pointer of git-lfs', '`version https://git-lfs…`', 'git-lfs pointer', 'git lfs pull')
def _(d): (d/'dog.safetensors').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'); return d/'dog.safetensors'

@refuses('empty file', 'no bytes', 'is empty', 'download it')
def _(d): (d/'dog.safetensors').write_bytes(b''); return d/'dog.safetensors'

@refuses('no tensors', 'a header alone', 'holds no tensors', 'Save it again')
def _(d): return write(d/'dog.safetensors', {})

@refuses('pickle under another name', 'a `.pt` called `.safetensors`', 'is a pickle', '.ckpt, .pt or .bin')
def _(d): return pickled(d/'dog.safetensors', lora()[0])

@refuses('safetensors under another name', 'called `.ckpt`', 'is a safetensors file', '.safetensors')
def _(d): return write(d/'dog.safetensors', lora()[0]).rename(d/'dog.ckpt')

@refuses('peft\'s file without its config', '`base_model.model.…`', 'adapter_config.json is missing', 'Put the file')
def _(d):
    k = f'base_model.model.{TO_Q}'
    return write(d/'out/adapter_model.safetensors', made(**{f'{k}.lora_A.weight': (2, 32), f'{k}.lora_B.weight': (32, 2)})).parent

@refuses('several epochs in one folder', '`dog-000001.safetensors`, `dog-000002.safetensors`', 'choose one', 'dog-000001.safetensors')
def _(d):
    for i in (1, 2): write(d/f'out/dog-00000{i}.safetensors', lora()[0])
    return d/'out'

@refuses('part of a sharded model', '`…-00001-of-00002.safetensors`', 'a shard', 'Give the folder')
def _(d): return write(d/'diffusion_pytorch_model-00001-of-00002.safetensors', made(**{'conv_in.weight': (16, 4, 3, 3)}))

# ---------------------------------------------------------------- every case, and the table of them
@functools.cache
def outcome(i):
    "What became of a case: (kind, largest error), or (nothing, the message)."
    c = CASES[i]
    with tempfile.TemporaryDirectory() as d, torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as m:
        m.setenv('OWF_CACHE', f'{d}/cache'); torch.manual_seed(0); (home := Path(d)/'files').mkdir()
        x = c.make(home)
        if c.kind:
            several = x if isinstance(x, list) else [x]
            assert {checkpoint_kind(m.path)[0] for m in several} == {c.kind}
            return c.kind, max(map(error, several))
        with pytest.raises(ForgetError) as e: load_adapted(base(), x)
        said = re.sub(r' \(\w+Error\)', '', str(e.value)).replace(EXPECTED, '').replace(f'{home}/', '').replace(str(home), '').strip()
        assert d not in said
        return '', said

NUMBERS = [pytest.param(i, id=f'{i:02} {c.name}') for i, c in enumerate(CASES)]
@pytest.mark.parametrize('i', [p for p in NUMBERS if CASES[p.values[0]].kind])
def test_it_is_read_exactly(i):
    kind, found = outcome(i)
    assert kind == CASES[i].kind and found <= ROUNDING

@pytest.mark.parametrize('i', [p for p in NUMBERS if not CASES[p.values[0]].kind])
def test_it_is_refused_with_the_true_reason_and_what_to_do(i):
    kind, said = outcome(i)
    assert not kind and not [s for s in CASES[i].says if s not in said], said
    assert not (Path(tempfile.gettempdir())/'harmed').exists()

def test_an_error_would_be_found():
    "The measure of exactness sees a wrong scale, a lost layer and a layer too many."
    f, deltas = pairs(base(), [TO_Q, CONV])
    with tempfile.TemporaryDirectory() as d:
        path = write(Path(d)/'a.safetensors', f)
        assert error(added(path, deltas)) <= ROUNDING < 1e-3 < error(added(path, {k: 1.1*v for k, v in deltas.items()}))
        for other in ({TO_Q: deltas[TO_Q]}, deltas | {RES: r(32, 32, 3, 3)}):
            with pytest.raises(AssertionError): error(added(path, other))

def cell(text): return text.replace('|', '\\|').replace('<', '&lt;') if '`' not in text else text.replace('|', '\\|')

def table():
    "The page of the documentation."
    lines = ['| file | known by | is | result |', '|---|---|---|---|']
    for i, c in enumerate(CASES):
        kind, found = outcome(i)
        if kind: assert found <= ROUNDING
        cells = (c.name, c.inside, f'read: `{kind}`' if kind else 'refused', 'exact to rounding' if kind else found)
        lines.append('| ' + ' | '.join(map(cell, cells)) + ' |')
    n = Counter(bool(c.kind) for c in CASES)
    real = ['| names as written by | of the | layers |', '|---|---|---|', *(f'| {who} | {SAID[part]} | {n} |' for (who, part), n in REAL.items())]
    return f'''---
title: "Every kind of file"
description: "Which checkpoints are read, and which are refused with which words."
---

{n[True]} kinds of files are read and {n[False]} are refused. `tests/test_file_kinds.py` makes one of each on a small random world, reads it,
and writes this table; a test compares the two. *Exact to rounding*: every parameter is within 10⁻⁶ of W + ΔW made by hand (relative to
its largest number; sums in float32 depend on their order), and every parameter that the file does not mention is the base's to the bit. The
messages are those of [`load_adapted`](../training/06_checkpoints.ipynb): each names the file, the reason, and what to do where something can
be done.

{chr(10).join(lines)}

## The names of the real Stable Diffusion 1.5

Without its weights (on torch's meta device) the denoiser has {COUNTS['unet']} tensors, the text encoder {COUNTS['text_encoder']}, the VAE
{COUNTS['vae']}. Each name that these tools write for it leads to one layer, with a difference of its shape; the {sum(COUNTS.values())} tensors
of a single file lead to those of the three networks, one to one.

{chr(10).join(real)}

Names and widths made in the same way from SDXL, SD 2, SD 3 and Flux are refused as theirs.
'''

def test_the_page_shows_the_table():
    assert PAGE.read_text(encoding='utf-8') == table(), f'run `python tests/{Path(__file__).name}`, and look at what changed'

# ---------------------------------------------------------------- the real layout, without weights
SAID = dict(unet='denoiser', text_encoder='text encoder')
COUNTS = dict(unet=686, text_encoder=196, vae=248)
REAL = {        # (who writes, of what) -> layers
    ('kohya\'s trainer', 'unet'): 192,
    ('kohya\'s trainer', 'text_encoder'): 72,
    ('kohya\'s trainer, with convolutions', 'unet'): 278,
    ('diffusers', 'unet'): 282,
    ('diffusers', 'text_encoder'): 72,
    ('diffusers, for kohya', 'unet'): 282,
    ('diffusers, for kohya', 'text_encoder'): 72,
    ('peft', 'unet'): 282,
    ('peft', 'text_encoder'): 72,
}

def meta(make):
    with torch.device('meta'): return make()

def clip_text():
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
    ))
def sd_vae():
    return AutoencoderKL(3, 3, ['DownEncoderBlock2D']*4, ['UpDecoderBlock2D']*4, (128, 256, 512, 512), 2, latent_channels=4)

@functools.cache
def real():
    unet = meta(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    return tiny_world().but(unet=unet, text_encoder=meta(clip_text), vae=meta(sd_vae))

def test_the_real_layout_has_its_tensors():
    assert {part: len(getattr(real(), part).state_dict()) for part in COUNTS} == COUNTS
    assert {v.device.type for part in COUNTS for v in getattr(real(), part).state_dict().values()} == {'meta'}
    assert sum(p.numel() for p in real().unet.parameters()) == 859_520_964

def layers(part):
    "Layers with a matrix or a convolution."
    return [n for n, m in getattr(real(), part).named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]

@functools.cache
def by_peft(part):
    "peft's own names for a LoRA of all of them -> shapes of rank 1."
    m = meta(lambda: get_peft_model(copy.deepcopy(getattr(real(), part)), LoraConfig(r=1, target_modules=layers(part))))
    return {k.removeprefix('base_model.model.'): tuple(v.shape) for k, v in get_peft_model_state_dict(m).items()}

KOHYAS = dict(unet=r'.*\.attentions\..*', text_encoder=r'.*\.(self_attn|mlp)\..*')
def empty(shapes): return {k: torch.empty(v, device='meta') for k, v in shapes.items()}
def of_shape(tensors): return {k: tuple(v.shape) for k, v in tensors.items()}

def written_by(who, part):
    "(names -> shapes of a LoRA of rank 1 on all layers that a tool adapts, those layers)."
    shapes = by_peft(part)
    if who.startswith('kohya'):                     # its own rule: transformers, and with convolutions also what lies between them; text_model. in the names
        pattern, prefix = (r'.*(attentions|resnets|samplers)\..*' if 'convolutions' in who else KOHYAS[part]), dict(unet='lora_unet', text_encoder='lora_te')
        mine, level = [n for n in layers(part) if re.fullmatch(pattern, n)], '' if part == 'unet' else 'text_model.'
        name = lambda n: kohya(level + n.removeprefix('text_model.'), prefix[part])
        ends = {'A': 'lora_down.weight', 'B': 'lora_up.weight'}
        return {f'{name(n)}.{ends[x]}': shapes[f'{n}.lora_{x}.weight'] for n in mine for x in 'AB'} | {f'{name(n)}.alpha': () for n in mine}, mine
    if who == 'diffusers': return {f'{part}.{k}': v for k, v in of_shape(convert_state_dict_to_diffusers(empty(shapes))).items()}, layers(part)
    if who == 'peft': return {f'base_model.model.{k}': v for k, v in shapes.items()}, layers(part)
    return of_shape(convert_state_dict_to_kohya(empty({f'{part}.{k}': v for k, v in shapes.items()}))), layers(part)

def as_file(path, shapes): return write(path, {k: torch.ones(v) for k, v in shapes.items()})

@pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing:FutureWarning')     # of peft's call of transformers
@pytest.mark.parametrize('who, part', REAL)
def test_every_real_name_leads_to_one_layer_with_a_difference_of_its_shape(who, part, tmp_path):
    shapes, mine = written_by(who, part)
    assert len(mine) == REAL[who, part]
    path = as_file(tmp_path/('adapter_model.safetensors' if who == 'peft' else 'dog.safetensors'), shapes)
    if who == 'peft': LoraConfig(r=1, target_modules=['to_q'] if part == 'unet' else ['q_proj']).save_pretrained(tmp_path)
    found, own = differences(real(), path), dict(getattr(real(), part).named_parameters())
    assert set(found) == {f'{part}.{n}.weight' for n in mine}
    assert all(d.shape == own[k.split('.', 1)[1]].shape and d.is_meta for k, d in found.items())

def test_the_places_of_names_are_all_layers_with_weights():
    names = layer_names(real())
    have = {f'{part}.{n}' for part in SAID for n, m in getattr(real(), part).named_modules() if isinstance(getattr(m, 'weight', None), torch.Tensor)}
    assert set(names.values()) == have

# what the file of 2022 is known to hold
KNOWN = {
    'model.diffusion_model.input_blocks.3.0.op.weight': (320, 320, 3, 3),
    'model.diffusion_model.output_blocks.5.2.conv.weight': (1280, 1280, 3, 3),
    'model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight': (1280, 768),
    'model.diffusion_model.out.2.bias': (4,),
    'first_stage_model.decoder.up.0.block.0.nin_shortcut.weight': (128, 256, 1, 1),
    'first_stage_model.encoder.mid.attn_1.q.weight': (512, 512, 1, 1),
    'first_stage_model.post_quant_conv.weight': (4, 4, 1, 1),
    'cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight': (768, 3072),
    'cond_stage_model.transformer.text_model.embeddings.position_ids': (1, 77),
}
def test_a_single_file_of_the_real_layout_is_its_three_networks_one_to_one():
    "And back: every tensor of the file under its old name has one place, with its shape."
    f = single_file(real()) | single_vae(real().vae)
    assert len(f) == sum(COUNTS.values()) + 1 and {k: tuple(f[k].shape) for k in KNOWN} == KNOWN
    part = lambda start: {k: v for k, v in f.items() if k.startswith(start)}
    unet = convert_ldm_unet_checkpoint(part('model.diffusion_model.'), real().unet.config)
    vae = convert_ldm_vae_checkpoint(part('first_stage_model.'), real().vae.config)
    assert of_shape(unet) == of_shape(real().unet.state_dict()) and {id(v) for v in unet.values()} == {id(v) for v in part('model.').values()}
    own = real().vae.state_dict()
    assert vae.keys() == own.keys() and all(vae[k].numel() == v.numel() for k, v in own.items())
    text = {_today(k.removeprefix(TEXT_OF), real().text_encoder.state_dict()): tuple(v.shape) for k, v in part(TEXT_OF).items() if 'position_ids' not in k}
    assert text == of_shape(real().text_encoder.state_dict())
    assert _file_kind('sd.safetensors', of_shape(f)) == 'single'

def sdxl():
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048, addition_embed_type='text_time', addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )
def sd2(): return UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
def flux(): return FluxTransformer2DModel(num_layers=1, num_single_layers=1)
def sd3(): return SD3Transformer2DModel(num_layers=1)

@functools.cache
def other(make):
    "Another family's network, and the names -> shapes of a LoRA of rank 1 on its attention."
    m = meta(make)
    meta(lambda: m.add_adapter(LoraConfig(r=1, target_modules=['to_k', 'to_out.0'])))
    return m, of_shape(get_peft_model_state_dict(m))

def of_first_names(m, shapes):
    "kohya's names for SDXL: those of the first code."
    names, ends = first_names(m), {'lora_A': 'lora_down', 'lora_B': 'lora_up'}
    def name(k):
        prefix = next(p for p in sorted(names, key=len, reverse=True) if k.startswith(p + '.'))
        layer, _, end = f'{names[prefix]}{k[len(prefix):]}'.rpartition('.lora_')
        return f'{kohya(layer)}.{ends[f"lora_{end[0]}"]}.weight'
    return {name(k): v for k, v in shapes.items()}

TE2 = {'lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_down.weight': (1, 1280), 'lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_up.weight': (5120, 1)}
@pytest.mark.parametrize('make, name, says', [
    (sdxl, lambda m, s: of_first_names(m, s), '(SDXL)'),
    (sdxl, lambda m, s: {k: v for k, v in of_first_names(m, s).items() if 'attn1' in k} | TE2, '(SDXL)'),
    (sdxl, lambda m, s: TE2, '(SDXL)'),
    (sdxl, lambda m, s: {f'unet.{k}': v for k, v in s.items()}, '(SDXL)'),
    (sdxl, lambda m, s: of_shape(convert_state_dict_to_kohya(empty({f'unet.{k}': v for k, v in s.items()}))), '(SDXL)'),
    (sd2, lambda m, s: {f'unet.{k}': v for k, v in s.items()}, '(SD 2)'),
    (sd2, lambda m, s: of_shape(convert_state_dict_to_kohya(empty({f'unet.{k}': v for k, v in s.items()}))), '(SD 2)'),
    (flux, lambda m, s: {f'transformer.{k}': v for k, v in s.items()}, '(Flux'),
    (sd3, lambda m, s: {f'transformer.{k}': v for k, v in s.items()}, 'SD 3'),
], ids=['sdxl kohya', 'sdxl kohya, self-attention and text', 'sdxl kohya, text', 'sdxl diffusers', 'sdxl diffusers for kohya', 'sd2 diffusers',
        'sd2 diffusers for kohya', 'flux diffusers', 'sd3 diffusers'])
def test_real_names_of_other_families_are_refused_as_theirs(make, name, says, tmp_path):
    with pytest.raises(ForgetError, match='made for another base') as e: differences(real(), as_file(tmp_path/'a.safetensors', name(*other(make))))
    assert says in str(e.value), str(e.value)

def test_kohyas_real_names_for_sdxl_are_made():
    names = of_first_names(*other(sdxl))
    assert names['lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight'] == (1, 2048)
    assert {re.match('lora_unet_([a-z]+_blocks?)', k)[1] for k in names} == {'input_blocks', 'middle_block', 'output_blocks'}

# ---------------------------------------------------------------- single files: nothing is lost in silence
def test_the_vae_of_the_base_in_a_single_file_is_the_base(tmp_path, capsys):
    "Also with attention, which a single file has as convolutions; another VAE is said."
    vae = lambda: AutoencoderKL(3, 3, ['DownEncoderBlock2D']*4, ['UpDecoderBlock2D']*4, (8, 8, 16, 16), 1, latent_channels=4, norm_num_groups=4).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, w in dict(plain=base(), attention=base().but(vae=vae())).items():                 # what is said is said once: names differ
            f = single_file(tuned())
            load_adapted(w, write(tmp_path/f'{name}.safetensors', f | single_vae(w.vae)))
            assert 'VAE' not in capsys.readouterr().out
            load_adapted(w, write(tmp_path/f'{name}-other.safetensors', f | single_vae(shake(w.vae))))
            assert 'another VAE' in capsys.readouterr().out

@pytest.mark.parametrize('key, says', [
    ('model.diffusion_model.fps_embed.weight', 'no place for'), (f'{K}.lora_down.weight', 'no place in a checkpoint of SD 1'),
    ('control_model.input_blocks.0.0.weight', 'ControlNet'), ('cond_stage_model.other.weight', 'no place in'),
    ('first_stage_model.x', None), ('model_ema.decay', None), ('embedding_manager.x', None), ('alphas_cumprod', None), ('cond_stage_model.logit_scale', None),
])
def test_every_tensor_of_a_single_file_has_a_place_or_is_named(key, says, tmp_path, capsys):
    f = write(tmp_path/'a.safetensors', single_file(tuned()) | {key: r(4, 4)})
    if says is None: assert error(replaced(f, 'unet', 'text_encoder')) == 0
    else:
        with pytest.raises(ForgetError, match=says) as e: load_adapted(base(), f)
        assert key in str(e.value) or says == 'ControlNet'

def test_two_pickles_of_one_name_are_a_choice(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_CACHE', str(tmp_path/'cache'))
    for end in ('pt', 'bin'): pickled(tmp_path/f'out/dog.{end}', pairs(base(), [TO_Q])[0])
    with pytest.raises(ForgetError, match='choose one'): load_adapted(base(), tmp_path/'out')

if __name__ == '__main__':
    PAGE.write_text(table(), encoding='utf-8')
    print(f'{PAGE.relative_to(ROOT)}: {len(CASES)} kinds')
