"""Checkpoints as people have them: the tensors of each kind made by hand on a small world, with what they mean. For the tests that read them."""
import re

import pytest
import torch
from safetensors.torch import save_file

from openworld_forget.core import ForgetError, generator
from openworld_forget.training.checkpoints import differences, load_adapted
from openworld_forget.worlds.load import clone

G = generator(0, 'files in the wild')
def r(*shape): return torch.randn(*shape, generator=G)*.2
ATTENTION = ('to_q', 'to_k', 'to_v', 'to_out.0')
TO_Q, CONV, RES = 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q', 'mid_block.attentions.0.proj_in', 'mid_block.resnets.0.conv1'
NORM, TEXT = 'mid_block.attentions.0.norm', 'encoder.layers.0.self_attn.q_proj'

def probe(w, prompt='a dog'):
    g = generator(0, 'probe'); z = torch.randn(2, *w.latent_shape, generator=g)
    with torch.no_grad(): return w.predict(z, torch.tensor([5, 500]), w.encode_text([prompt]*2))
def same(a, b, atol=3e-5): return torch.allclose(probe(a), probe(b), atol=atol, rtol=1e-4)
def kohya(name, prefix='lora_unet'): return f'{prefix}_{name.replace(".", "_")}'
def weight(base, name):
    for m in (base.unet, base.text_encoder):
        try: return m.get_submodule(name).weight.detach()
        except AttributeError: continue
def write(path, tensors, meta=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, meta); return path
def refused(base, path, *said, **kw):
    with pytest.raises(ForgetError) as e: load_adapted(base, path, **kw)
    for s in said: assert s in str(e.value), (s, str(e.value))
    return str(e.value)
def exact(base, path, deltas, biases=()):
    "The file adds exactly these differences, and nothing else changes."
    w, biases = load_adapted(base, path), dict(biases)
    want = {f'{k}.weight': v for k, v in deltas.items()} | {f'{k}.bias': v for k, v in biases.items()}
    for part in ('unet', 'text_encoder'):
        own = dict(getattr(base, part).named_parameters())
        for k, p in getattr(w, part).named_parameters():
            q = own[k] + want[k].reshape(own[k].shape) if k in want else own[k]
            assert torch.allclose(p, q, atol=1e-6, rtol=1e-5) and (k in want or torch.equal(p, q)), k
    assert {k.split('.', 1)[1] for k in differences(base, path)} == set(want)
    return w

# ---- differences

def pairs(base, names, rank=lambda i: 2, alpha=lambda i: None, write=lambda n: kohya(n), down='lora_down.weight', up='lora_up.weight'):
    "(tensors of a file, differences by hand) of LoRA pairs on some layers."
    f, deltas = {}, {}
    for i, n in enumerate(names):
        W, k, a = weight(base, n), rank(i), alpha(i)
        A, B = r(k, *W.shape[1:]), r(len(W), k, *[1]*(W.ndim - 2))
        f |= {f'{write(n)}.{down}': A, f'{write(n)}.{up}': B} | ({f'{write(n)}.alpha': torch.tensor(float(a))} if a is not None else {})
        deltas[n] = (1 if a is None else a/k)*(B.flatten(1) @ A.flatten(1)).reshape(W.shape)
    return f, deltas
def attention(base): return [k for k, _ in base.unet.named_modules() if k.endswith(ATTENTION)]
def tucker(t, a, b): return torch.einsum('ijkl,ip,jr->prkl', t, a, b).contiguous()

# ---- whole networks

def shake(m):
    m = clone(m)
    with torch.no_grad():
        for p in m.parameters(): p.add_(.05*torch.randn(p.shape, generator=G))
    return m

def rows(w, prompt):
    "The embeddings of a prompt's new words."
    ids = w.tokens([prompt])[0]; new = torch.tensor([int(i) not in (w.tokenizer.eos_token_id, w.tokenizer.bos_token_id) for i in ids])
    return w.text_encoder.get_input_embeddings().weight[ids[new]]

# ---- single files: Stable Diffusion 1 under the names of its first code

RESNET = {'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'norm2': 'out_layers.0', 'conv2': 'out_layers.3', 'time_emb_proj': 'emb_layers.1',
          'conv_shortcut': 'skip_connection'}
TOP = {'time_embedding.linear_1': 'time_embed.0', 'time_embedding.linear_2': 'time_embed.2', 'conv_in': 'input_blocks.0.0', 'conv_norm_out': 'out.0',
       'conv_out': 'out.2', 'mid_block.resnets.0': 'middle_block.0', 'mid_block.attentions.0': 'middle_block.1', 'mid_block.resnets.1': 'middle_block.2'}

def first_names(unet):
    "Today's prefix of a module -> that of the first code."
    n, out = unet.config.layers_per_block, dict(TOP)
    for i, b in enumerate(unet.down_blocks):
        for j in range(n):
            out[f'down_blocks.{i}.resnets.{j}'] = f'input_blocks.{i*(n + 1) + 1 + j}.0'
            out[f'down_blocks.{i}.attentions.{j}'] = f'input_blocks.{i*(n + 1) + 1 + j}.1'
        out[f'down_blocks.{i}.downsamplers.0.conv'] = f'input_blocks.{(i + 1)*(n + 1)}.0.op'
    for i, b in enumerate(unet.up_blocks):
        for j in range(n + 1):
            out[f'up_blocks.{i}.resnets.{j}'] = f'output_blocks.{i*(n + 1) + j}.0'
            out[f'up_blocks.{i}.attentions.{j}'] = f'output_blocks.{i*(n + 1) + j}.1'
        out[f'up_blocks.{i}.upsamplers.0.conv'] = f'output_blocks.{i*(n + 1) + n}.{2 if hasattr(b, "attentions") else 1}.conv'
    return out

def single_file(w, dtype=torch.float32):
    "A world's denoiser and text encoder as one file has them."
    out, names = {}, first_names(w.unet)
    for k, v in w.unet.state_dict().items():
        prefix = next(p for p in sorted(names, key=len, reverse=True) if k.startswith(p + '.'))
        rest = k[len(prefix) + 1:]
        if '.resnets.' in prefix: rest = RESNET[rest.rpartition('.')[0]] + '.' + rest.rpartition('.')[2]
        out[f'model.diffusion_model.{names[prefix]}.{rest}'] = v.to(dtype)
    bare = lambda k: k.removeprefix('text_model.')
    out |= {f'cond_stage_model.transformer.text_model.{bare(k)}': v.to(dtype) for k, v in w.text_encoder.state_dict().items()}
    return out | {'cond_stage_model.transformer.text_model.embeddings.position_ids': torch.arange(77)[None]}

VAE_NAMES = (
    ('.mid_block.resnets.0.', '.mid.block_1.'), ('.mid_block.resnets.1.', '.mid.block_2.'), ('.mid_block.attentions.0.', '.mid.attn_1.'),
    ('.resnets.', '.block.'), ('.downsamplers.0.', '.downsample.'), ('.upsamplers.0.', '.upsample.'), ('.down_blocks.', '.down.'),
    ('.conv_shortcut.', '.nin_shortcut.'), ('.conv_norm_out.', '.norm_out.'), ('.group_norm.', '.norm.'),
    ('.to_q.', '.q.'), ('.to_k.', '.k.'), ('.to_v.', '.v.'), ('.to_out.0.', '.proj_out.'),
)

def single_vae(vae):
    "A VAE as a single file has it: other names, levels of the decoder from the inside out, attention as 1x1 convolutions."
    out, last = {}, len(vae.config.block_out_channels) - 1
    for k, v in vae.state_dict().items():
        name = re.sub(r'\.up_blocks\.(\d)\.', lambda m: f'.up.{last - int(m[1])}.', k)
        for new, old in VAE_NAMES: name = name.replace(new, old)
        out[f'first_stage_model.{name}'] = v[..., None, None] if '.attn_1.' in name and v.ndim == 2 else v
    return out
