"""Customize the mini world with diffusers and peft alone, and write the commonest kinds of file that `load_adapted` reads.

    python tools/foreign.py [--subject cat-noto] [--steps 150] [--out outputs/foreign]

The study `studies/checkpoints.yaml` then measures what each of them broke. Only the pictures come from this package: the training loop is the plain
one of diffusers'
examples, and the files are written by diffusers' and peft's own functions.
"""
import argparse, os
from pathlib import Path

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tqdm.auto import tqdm

from openworld_forget.core import generator, root
from openworld_forget.worlds.world import provider, spec_of

SOURCE = root()/spec_of('mini').source

def pipeline():
    return StableDiffusionPipeline.from_pretrained(
        SOURCE, dtype=torch.float32, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )

def train(pipe, params, images, prompt, steps, lr, key, batch=4, only_row=None):
    "The plain loop; with `only_row`, all rows of the token embedding but one keep their values."
    noise, params = DDPMScheduler.from_config(pipe.scheduler.config), list(params)
    opt = torch.optim.AdamW(params, lr=lr)
    x = 2*images.float()/255 - 1
    rows = pipe.text_encoder.get_input_embeddings().weight
    old = rows.detach().clone()
    ids = pipe.tokenizer([prompt], padding='max_length', max_length=pipe.tokenizer.model_max_length, return_tensors='pt').input_ids
    for step in tqdm(range(steps), desc=key, leave=False):
        g = generator(0, 'foreign', key, step)
        with torch.no_grad(): z = pipe.vae.encode(x[torch.randint(len(x), (batch,), generator=g)]).latent_dist.mean*pipe.vae.config.scaling_factor
        e, t = torch.randn(z.shape, generator=g), torch.randint(noise.config.num_train_timesteps, (batch,), generator=g)
        c = pipe.text_encoder(ids)[0].expand(batch, -1, -1)
        F.mse_loss(pipe.unet(noise.add_noise(z, e, t), t, c).sample, e).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        opt.step()
        opt.zero_grad()
        if only_row is not None:
            with torch.no_grad(): keep = torch.arange(len(rows)) != only_row; rows[keep] = old[keep]

def frozen(pipe):
    for m in (pipe.unet, pipe.text_encoder, pipe.vae): m.requires_grad_(False)
    return pipe

def new_word(pipe, word, like):
    "Add a word that starts as another one; its row."
    pipe.tokenizer.add_tokens(word)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    rows = pipe.text_encoder.get_input_embeddings().weight
    i, j = (pipe.tokenizer.convert_tokens_to_ids(pipe.tokenizer.tokenize(x))[0] for x in (word, like))
    with torch.no_grad(): rows[i] = rows[j]
    rows.requires_grad_(True); return rows, i

def lora(s, steps, out):
    p = frozen(pipeline())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        p.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights='gaussian', target_modules=['to_q', 'to_k', 'to_v', 'to_out.0']))
    train(p, [q for q in p.unet.parameters() if q.requires_grad], s.images, s.instance_prompt, steps, 1e-3, 'lora')
    state = get_peft_model_state_dict(p.unet)
    StableDiffusionPipeline.save_lora_weights(
        out / 'lora', convert_state_dict_to_diffusers(state), unet_lora_adapter_metadata=p.unet.peft_config['default'].to_dict()
    )
    kohya = {
        k[k.index('lora_unet') :]: v.contiguous()
        for k, v in convert_state_dict_to_kohya({f'base_model.model.unet.{k}': v for k, v in state.items()}).items()
    }
    save_file(kohya | {k.replace('lora_down.weight', 'alpha'): torch.tensor(4.) for k in kohya if 'lora_down' in k}, out/'kohya.safetensors')

def unet(s, steps, out):
    p = frozen(pipeline())
    p.unet.requires_grad_(True)
    train(p, p.unet.parameters(), s.images, s.instance_prompt, steps, 1e-4, 'unet')
    p.unet.save_pretrained(out/'unet')

def whole(s, steps, out):
    p = frozen(pipeline())
    params = [*p.unet.requires_grad_(True).parameters(), *p.text_encoder.requires_grad_(True).parameters()]
    train(p, params, s.images, s.instance_prompt, steps, 1e-4, 'pipeline')
    p.save_pretrained(out/'pipeline')

def inversion(s, steps, out):
    p = frozen(pipeline())
    rows, i = new_word(p, '<cat>', s.class_word)
    train(p, [rows], s.images, s.template.format('<cat>'), steps, 5e-3, 'inversion', only_row=i)
    save_file({'<cat>': rows[i].detach().clone()}, out/'cat.safetensors')

def custom(s, steps, out):
    p = frozen(pipeline()); rows, i = new_word(p, '<new1>', s.class_word); procs = {}
    for name, old in p.unet.attn_processors.items():
        attn = p.unet.get_submodule(name.removesuffix('.processor')); cross = 'attn2' in name
        procs[name] = CustomDiffusionAttnProcessor(
            train_kv=cross,
            train_q_out=False,
            hidden_size=attn.to_k.out_features if cross else None,
            cross_attention_dim=attn.to_k.in_features if cross else None,
        )
        if cross: procs[name].load_state_dict({'to_k_custom_diffusion.weight': attn.to_k.weight, 'to_v_custom_diffusion.weight': attn.to_v.weight})
    params = [q for x in procs.values() for q in x.parameters()]; p.unet.set_attn_processor(procs)      # which empties the dict
    train(p, [*params, rows], s.images, s.template.format(f'<new1> {s.class_word}'), steps, 1e-3, 'custom', only_row=i)
    p.unet.save_attn_procs(out/'custom')
    save_file({'<new1>': rows[i].detach().clone()}, out/'custom/<new1>.safetensors')

def main(argv=None):
    ap = argparse.ArgumentParser()
    ap.add_argument('--subject', default='cat-noto')
    ap.add_argument('--steps', type=int, default=150)
    ap.add_argument('--out', type=Path, default=root()/'outputs/foreign')
    a = ap.parse_args(argv)
    spec = spec_of('mini')
    p = pipeline()
    s = provider(spec).subject(a.subject, p.unet.config.sample_size*p.vae_scale_factor, spec.token)
    a.out.mkdir(parents=True, exist_ok=True)
    for f in (lora, unet, whole, inversion, custom): f(s, a.steps, a.out)
    print(
        '\n'.join(
            f'{p.relative_to(a.out)}  {sum(f.stat().st_size for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()) / 1e6:.1f} MB'
            for p in sorted(a.out.iterdir())
        )
    )

if __name__ == '__main__': main()
