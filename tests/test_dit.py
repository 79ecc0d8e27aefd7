"""A denoiser without cross-attention: text beside image tokens in one self-attention, through the same code as every other world."""
import json
import shutil

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel

from openworld_forget.batches import at_once, blank, image_bytes
from openworld_forget.core import ForgetError, noise
from openworld_forget.metrics.classify import NoisePlan, Stages, classify, errors
from openworld_forget.training.adapt import Adaptation, adapt
from openworld_forget.training.checkpoints import differences, load_adapted
from openworld_forget.training.memory import memory, networks
from openworld_forget.training.methods import customize, method
from openworld_forget.worlds.doctor import weights_needs
from openworld_forget.worlds.generate import generate
from openworld_forget.worlds.joint import JointWorld
from openworld_forget.worlds.load import load_world, own_files
from openworld_forget.worlds.tiny import save_world, tiny_joint_world, tiny_subject, tiny_world

FEW = dict(recipe=dict(steps=2, batch=2, lr=1e-3), images=2)
PROMPTS = ['a dog', 'a red cat']

@pytest.fixture(scope='module')
def base(): return tiny_joint_world()
@pytest.fixture(scope='module')
def folder(base, tmp_path_factory):
    save_world(base, d := tmp_path_factory.mktemp('joint')); return d
@pytest.fixture(scope='module')
def points(base): return noise(base.latent_shape, 0, 'points', [0, 1]), torch.tensor([5, 600])
@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

def answer(w, points, prompts=PROMPTS):
    with torch.no_grad(): return w.predict(*points, w.encode_text(prompts))
def edit(file, **new): file.write_text(json.dumps({**json.loads(file.read_text()), **new}))
def at(base, folder): return load_world(base.spec.but(source=str(folder)), 'cpu')

# ---- what a world answers is what diffusers answers
def test_a_folder_with_a_transformer_is_a_world_whose_parts_diffusers_reads(base, folder, points):
    w = at(base, folder)
    assert isinstance(w, JointWorld) and w.key == base.key and torch.equal(answer(w, points), answer(base, points))
    net = SD3Transformer2DModel.from_pretrained(folder/'transformer')
    text = base.text_encoder(base.tokens(PROMPTS))
    with torch.no_grad(): said = net(points[0], text.last_hidden_state, text.pooler_output, points[1]).sample
    assert torch.allclose(said, answer(base, points), atol=1e-5)

def test_every_token_of_the_prompt_and_its_pooled_row_are_read(base, points):
    c = base.encode_text(PROMPTS)
    with torch.no_grad():
        for row in (0, 3, -1):
            d = c.clone(); d[:, row] += 1
            assert not torch.allclose(base.predict(*points, d), base.predict(*points, c), atol=1e-6)
    with pytest.raises(ForgetError, match='the last row the pooled'): base.predict(*points, c[:, :-1])

def test_sampling_is_ddim_with_guidance_on_the_raw_output(base):
    "Two steps by hand: the mean of the null's and the prompt's velocity, then the formula of DDIM."
    got = base.pipeline()(**base.prompted(base.encode_text(['a dog']), base.encode_text([''])), num_inference_steps=2,
                          latents=(z := noise(base.latent_shape, 0, 'z', [0])), guidance_scale=3., output_type='latent').images
    s, alphas = base._sampler(), base.scheduler.alphas_cumprod; s.set_timesteps(2)
    for t in s.timesteps.tolist():
        with torch.no_grad(): v, n = (base.predict(z, torch.tensor([t]), base.encode_text([q])) for q in ('a dog', ''))
        v, a, b = n + 3*(v - n), alphas[t], alphas[max(t - 500, 0)]
        x, e = a.sqrt()*z - (1-a).sqrt()*v, a.sqrt()*v + (1-a).sqrt()*z
        z = b.sqrt()*x + (1-b).sqrt()*e
    assert torch.allclose(got, z, atol=1e-4)

def test_pictures_do_not_depend_on_their_neighbours(base):
    both = generate(base, PROMPTS, [1, 2], steps=2); alone = generate(base, PROMPTS[1:], [2], steps=2, guidance=None)
    assert (both[1].int() - alone[0].int()).abs().max() <= 1 and not torch.equal(both[0], both[1])

def test_a_diffusion_classifier_looks_at_the_whole_transformer_for_every_class(base):
    z = noise(base.latent_shape, 1, 'z', [0, 1]); plan = NoisePlan(steps=2); got = errors(base, z, PROMPTS, plan)
    ts, eps = plan.timesteps(base), plan.noise(base, [0, 1])
    for i, c, s in ((0, 0, 0), (1, 1, 1)):
        x = base.add_noise(z[i:i+1], eps[s:s+1], ts[s:s+1])
        with torch.no_grad(): e = base.epsilon(base.predict(x, ts[s:s+1], base.encode_text([PROMPTS[c]])), x, ts[s:s+1])
        assert torch.isclose(got[i, c, s], (eps[s] - e[0]).square().mean(), rtol=1e-4)
    assert classify(base, z, PROMPTS, plan, Stages(steps=(1, 2), keep=(2, 1))).predictions.shape == (2,)

# ---- what a study does with it
METHODS = ['db-dc', 'lora-dc', 'db-l2', 'lora-rewound', 't-lora', 'oplora', 'db-ewc', 'db-dco', 'oft-plain', 'svdiff-plain', 'ti']
@pytest.mark.parametrize('name', METHODS)
def test_methods_train_save_and_come_back_and_leave_the_base(base, points, tmp_path, cache, monkeypatch, name):
    from openworld_forget.training import regularize as R
    monkeypatch.setattr(R.fisher_information, '__defaults__', (2, 0, None))
    before = base.but().key; m = method(name, **FEW, **(dict(adaptation=dict(keep=1)) if name == 'oplora' else {}),
                                        **(dict(adaptation=dict(rank=8)) if name == 'oft-plain' else {}))
    w, log = customize(base, tiny_subject(), m, path=tmp_path/'adapter.safetensors', cache=cache)
    again = load_adapted(base, tmp_path/'adapter.safetensors'); prompts = ['a x cat', 'a cat']
    assert len(log) == 2 and torch.equal(answer(w, points, prompts), answer(again, points, prompts)) and again.key == w.key
    assert not torch.equal(answer(w, points, prompts), answer(base, points, prompts)) and base.but().key == before

def test_a_lora_is_beside_the_attention_of_the_image_tokens(base):
    _, params = adapt(base, Adaptation(kind='lora'), 'x')
    layers = {k.removeprefix('unet.').rsplit('.lora_', 1)[0] for k in params}
    assert layers == {f'transformer_blocks.{i}.attn.{n}' for i in (0, 1) for n in ('to_q', 'to_k', 'to_v', 'to_out.0')}

def test_custom_diffusion_is_refused_for_the_reason(base, cache):
    with pytest.raises(ForgetError, match=r"keys and values of cross-attention, and the denoiser of 'tiny-joint' has none.*Use db or lora"):
        customize(base, tiny_subject(), method('cd-plain', **FEW), cache=cache)
    assert len(tiny_world().cross) == 8                                             # four layers of cross-attention

def test_a_correction_starts_at_zero_and_the_instance_loss_does_not(base, cache):
    "At the first step the adapted world is the base: nothing has drifted."
    _, log = customize(base, tiny_subject(), method('lora-dc-nopr', **FEW), cache=cache)
    assert log[0]['correction'] == 0 and log[0]['instance'] > 0

def test_strength_zero_is_the_base_and_one_the_file(base, points, tmp_path, cache):
    w, _ = customize(base, tiny_subject(), method('db-plain', **FEW), path=tmp_path/'a.safetensors', cache=cache)
    none = load_adapted(base, tmp_path/'a.safetensors', strength=0.)
    assert torch.equal(answer(none, points), answer(base, points)) and not torch.equal(answer(w, points), answer(base, points))
    assert set(differences(base, tmp_path/'a.safetensors')) == {f'unet.{k}' for k, _ in base.unet.named_parameters()}

# ---- files that are not of this layout
def test_another_transformer_is_refused_by_its_class(base, folder, tmp_path):
    d = shutil.copytree(folder, tmp_path/'w'); shutil.rmtree(d/'transformer')
    PixArtTransformer2DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8, cross_attention_dim=16,
                             caption_channels=32, norm_num_groups=1).save_pretrained(d/'transformer')
    with pytest.raises(ForgetError, match=r'PixArtTransformer2DModel.*one self-attention'): at(base, d)

@pytest.mark.parametrize('file, change, says', [
    ('scheduler/scheduler_config.json', dict(_class_name='FlowMatchEulerDiscreteScheduler'), 'only models that predict noise or velocity'),
    ('scheduler/scheduler_config.json', dict(prediction_type='flow_prediction'), 'epsilon and v_prediction')])
def test_a_rectified_flow_is_refused_before_the_weights_are_read(base, folder, tmp_path, file, change, says):
    d = shutil.copytree(folder, tmp_path/'w'); edit(d/file, **change); (d/'transformer/diffusion_pytorch_model.safetensors').write_bytes(b'no')
    with pytest.raises(ForgetError, match=says): at(base, d)

def test_what_is_missing_or_does_not_fit_is_said_by_its_folder(base, folder, tmp_path):
    d = shutil.copytree(folder, tmp_path/'a'); (d/'transformer/config.json').unlink()
    with pytest.raises(ForgetError, match=r'lacks transformer/config\.json'): at(base, d)
    net = SD3Transformer2DModel.from_config({**base.unet.config, 'pooled_projection_dim': 24})
    save_world(base.but(unet=net), e := tmp_path/'b')
    with pytest.raises(ForgetError, match=r'transformer/config\.json: it reads a pooled text of width 24, the text encoder gives 32'): at(base, e)

def test_doctor_and_engine_know_its_files(base, folder):
    spec = base.spec.but(source=str(folder))
    assert folder/'transformer' in own_files(spec) and not {folder/'unet'} & set(own_files(spec))
    assert all(n.present for n in weights_needs(spec)) and 'transformer' in {n.name for n in weights_needs(spec)}

def test_what_an_image_needs_of_memory_is_counted(base):
    net = blank(SD3Transformer2DModel, base.unet.config)
    one, four = (image_bytes(net, 'denoise', 8, n) for n in (1, 4))
    step = memory(base, method('db-plain', **FEW))
    assert step.gradients == 4*sum(p.numel() for p in base.unet.parameters()) and step.activations > 0
    assert 0 < one < four and at_once(50, base.unet, 'denoise', 8) == 50 and set(networks(base)) == {'text_encoder', 'vae', 'unet'}
