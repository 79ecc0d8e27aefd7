"""SDXL through `World`: a world of its layout answers what diffusers' own pipeline answers, and everything that a study does with a world works on it."""
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from openworld_forget.audit.scan import scan
from openworld_forget.core import ForgetError, noise
from openworld_forget.metrics.classify import NoisePlan, Stages, classify, errors
from openworld_forget.study.engine import trial
from openworld_forget.training.adapt import Adaptation, adapt, load_own, save_adapted
from openworld_forget.training.checkpoints import add_token, checkpoint_files, differences, load_adapted
from openworld_forget.training.deltas import layer_names, weight_changes
from openworld_forget.training.methods import customize, method
from openworld_forget.training.regularize import SOURCES
from openworld_forget.training.together import load_together
from openworld_forget.worlds.data import Word
from openworld_forget.worlds.generate import generate
from openworld_forget.worlds.load import _check_parts, clone, load_world
from openworld_forget.worlds.tiny import save_world, tiny_sd2_world, tiny_subject, tiny_world, tiny_xl_world
from openworld_forget.worlds.world import World, XLWorld, spec_of
from wild import first_names, kohya, pairs, r, refused, same, shake, single_file, write

PROMPTS = ['a dog', 'a red cat, 2']
TE1, TE2 = 'encoder.layers.0.mlp.fc1', 'text_model.encoder.layers.1.self_attn.q_proj'
TO_K = 'down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k'

@pytest.fixture(scope='module')
def base():
    w = tiny_xl_world()
    return w.but(spec=w.spec.but(sampling_steps=2))
@pytest.fixture(scope='module')
def folder(base, tmp_path_factory):
    "A folder as the published one is: Euler's schedule, and a setting of the pipeline."
    d = tmp_path_factory.mktemp('xl')
    save_world(base, d)
    schedule = dict(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', steps_offset=1, timestep_spacing='leading')
    EulerDiscreteScheduler(**schedule).save_pretrained(d/'scheduler')
    return d
@pytest.fixture(scope='module')
def points(base): return noise(base.latent_shape, 0, 'points', [0, 1]), torch.tensor([5, 600])
@pytest.fixture(scope='module')
def pipe(folder):
    p = StableDiffusionXLPipeline.from_pretrained(folder)
    p.set_progress_bar_config(disable=True)
    return p

def edit(file, **new): file.write_text(json.dumps({**json.loads(file.read_text()), **new}))
def answer(w, points, prompts=PROMPTS):
    with torch.no_grad(): return w.predict(*points, w.encode_text(prompts))

# ---- what a world answers is what diffusers answers
def test_a_folder_in_sdxls_layout_is_a_world_of_two_text_encoders(base, folder):
    w = load_world({'name': 'mine', 'source': str(folder), 'like': 'sdxl'}, 'cpu')
    assert isinstance(w, XLWorld) and w.spec.name == 'mine' and list(w.encoders) == ['text_encoder', 'text_encoder_2']
    assert w.but(spec=base.spec, scheduler=base.scheduler).key == base.key and w.tokenizer_2.pad_token == '!'
    assert torch.equal(w.encode_text(PROMPTS), base.encode_text(PROMPTS))

def test_without_model_index_the_folders_say_the_layout(base, folder, tmp_path):
    shutil.copytree(folder, tmp_path/'w'); (tmp_path/'w/model_index.json').unlink()
    assert isinstance(load_world(base.spec.but(source=str(tmp_path/'w')), 'cpu'), XLWorld)

def test_text_states_and_answers_are_those_of_diffusers(base, pipe, points):
    e, null, pooled, null_pooled = pipe.encode_prompt(PROMPTS, device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=True)
    c = base.encode_text([*PROMPTS, ''])
    width = pooled.shape[1]
    for got, want in ((c[:2, :-1], e), (c[:2, -1, :width], pooled), (c[2, :-1], null[0]), (c[2, -1, :width], null_pooled[0])):
        assert torch.allclose(got, want, atol=1e-6, rtol=0)
    ids = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), dtype=e.dtype, text_encoder_projection_dim=width)
    told = dict(added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids.repeat(2, 1)))
    with torch.no_grad(): want, theirs = (u(*points, e, **told).sample for u in (base.unet, pipe.unet))
    assert torch.allclose(base.predict(*points, c[:2]), want, atol=1e-6, rtol=0)
    assert torch.allclose(base.predict(*points, c[:2]), theirs, atol=5e-6, rtol=0)            # other memory, other rounding

def test_the_pooled_embedding_and_the_sizes_change_the_answer(base, points):
    "The comparison with diffusers would see them missing."
    c = base.encode_text(PROMPTS); swapped = torch.cat([c[:, :-1], c[[1, 0], -1:]], 1)
    larger, told = base.but(), base.conditions(c)[1]['added_cond_kwargs']
    larger.conditions = lambda x: (x[:, :-1], dict(added_cond_kwargs=dict(told, time_ids=torch.ones(2, 6))))
    for other in (base.predict(*points, swapped), larger.predict(*points, c)): assert (base.predict(*points, c) - other).abs().max() > 1e-3

def test_pictures_are_the_pipelines_own(base, pipe):
    z = torch.stack([noise(base.latent_shape, k, 'generate', [0])[0] for k in (3, 4)])
    own = base.pipeline()
    for p in (own, StableDiffusionXLPipeline(**{**pipe.components, 'scheduler': own.scheduler}, add_watermarker=False)):
        p.set_progress_bar_config(disable=True)
        for g in (1., 5.):
            want = p(PROMPTS, latents=z, num_inference_steps=3, guidance_scale=g, output_type='pt').images
            assert (generate(base, PROMPTS, [3, 4], steps=3, guidance=g).float() - 255*want).abs().max() <= .51

def test_a_pipeline_that_encodes_the_empty_prompt_is_another_world(base, folder, points, tmp_path):
    shutil.copytree(folder, tmp_path/'w'); edit(tmp_path/'w/model_index.json', force_zeros_for_empty_prompt=False)
    w = load_world(base.spec.but(source=str(tmp_path/'w')), 'cpu')
    assert w.encode_text(['']).any() and not base.encode_text(['', ' ']).any()
    assert w.key != load_world(base.spec.but(source=str(folder)), 'cpu').key
    assert torch.equal(w.encode_text(PROMPTS), base.encode_text(PROMPTS))
    save_world(w, tmp_path/'again'); assert not load_world(base.spec.but(source=str(tmp_path/'again')), 'cpu').zero_empty

def test_the_two_encoders_decide_the_key_and_the_place(base):
    other = base.but(text_encoder_2=shake(base.text_encoder_2))
    assert other.key != base.key and base.but().key == base.key
    half = tiny_xl_world().to(dtype=torch.float16)
    assert {k: m.dtype for k, m in half.networks.items()} == {**dict.fromkeys(half.networks, torch.float16), 'vae': torch.float32}
    x = half.encode(torch.rand(1, 3, 64, 64)); assert x.dtype == torch.float16 and half.decode(x).dtype == torch.float32
    assert half.to(dtype=torch.bfloat16).vae.dtype == torch.bfloat16

@pytest.mark.parametrize('part, new, says', [
    ('unet/config.json', dict(addition_embed_type=None), 'has no place for 4 tensors'),
    ('unet/config.json', dict(addition_embed_type='text'), 'lacks'),
    ('text_encoder_2/config.json', dict(projection_dim=24), 'text_encoder_2'),
    ('model_index.json', dict(text_encoder_2=[None, None]), 'there is no text_encoder_2'),
    ('vae/config.json', dict(scaling_factor=0), 'XL: 0.13025'), ('vae/config.json', dict(latents_mean=[1.]*4), 'shifted latents'),
])
def test_parts_that_do_not_belong_together_are_refused(base, folder, tmp_path, part, new, says):
    shutil.copytree(folder, tmp_path/'w'); edit(tmp_path/'w'/part, **new)
    if part == 'model_index.json': shutil.rmtree(tmp_path/'w/text_encoder_2')
    with pytest.raises(ForgetError, match=says): load_world(base.spec.but(source=str(tmp_path/'w')), 'cpu')

@pytest.mark.parametrize('gone, says', [('text_encoder_2/model.safetensors', 'text_encoder_2/model.safetensors'), ('tokenizer_2', 'tokenizer_2/')])
def test_a_missing_part_of_the_second_encoder_is_named(base, folder, tmp_path, gone, says):
    shutil.copytree(folder, tmp_path/'w'); f = tmp_path/'w'/gone
    shutil.rmtree(f) if f.is_dir() else f.unlink()
    with pytest.raises(ForgetError, match=f'lacks {says}'): load_world(base.spec.but(source=str(tmp_path/'w')), 'cpu')

def test_text_states_without_the_pooled_row_are_refused(base, points):
    with pytest.raises(ForgetError, match='pooled'): base.predict(*points, base.encode_text(PROMPTS)[:, :-1])

def test_sdxl_and_the_sd2_layout_are_known(base):
    s = spec_of('sdxl')
    assert s.source == 'stabilityai/stable-diffusion-xl-base-1.0' and len(s.revision) == 40 and {'db', 'lora', 'cd'} <= set(s.recipes)
    w = tiny_sd2_world(); assert type(w) is World and w.prediction == 'v_prediction' and w.tokens(['a'])[0, -1] == 0

def test_the_published_configs_have_the_sums_that_are_checked():
    "SDXL's real sizes, without weights."
    with torch.device('meta'):
        clip = lambda width, layers: CLIPTextConfig(
            vocab_size=49408, hidden_size=width, intermediate_size=4*width, num_hidden_layers=layers, num_attention_heads=width//64, projection_dim=width)
        text, two = CLIPTextModel(clip(768, 12)), CLIPTextModelWithProjection(clip(1280, 32))
        unet = UNet2DConditionModel(
            128, block_out_channels=(320, 640, 1280), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048, addition_embed_type='text_time', addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
            use_linear_projection=True)
        vae = AutoencoderKL(3, 3, ['DownEncoderBlock2D']*4, ['UpDecoderBlock2D']*4, (128, 256, 512, 512), 2, latent_channels=4, scaling_factor=.13025)
    tiny = tiny_xl_world(); w = tiny.but(text_encoder=text, text_encoder_2=two, unet=unet, vae=vae)
    _check_parts(w, 'sdxl')
    assert w.text_shape == (78, 2048) and w.pooled == 1280 and w.resolution == 1024
    names = layer_names(w); first = first_names(unet) | {f'add_embedding.linear_{i}': f'label_emb.0.{2*i - 2}' for i in (1, 2)}
    blocks = [(kohya(first[p]), p) for p in first if any(k == p or k.startswith(p + '.') for k, _ in unet.named_modules())]
    transformers = {k for k, m in unet.named_modules() if '.transformer_blocks.' in k and getattr(m, 'weight', None) is not None}
    def old(k): p = max((p for _, p in blocks if k.startswith(p + '.')), key=len); return kohya(first[p] + k[len(p):])
    assert len(transformers) > 700 and all(names[old(k)] == f'unet.{k}' for k in transformers)
    assert len([k for k in names if k.startswith('lora_te2_text_model_encoder_layers_')]) == 32*8

# ---- what a study does with it
def test_remembered_prompts_answer_the_same(base, points):
    c = base.encode_text([*PROMPTS, ''])
    for which in ([0, 2], [1, 0]):
        with torch.no_grad(), base.remembered(c) as pick: got = base.predict(*points, pick(torch.tensor(which)))
        assert torch.allclose(got, base.predict(*points, c[which]), atol=1e-6)
    assert torch.equal(answer(base, points), base.predict(*points, c[:2]))

def test_noise_and_classification_work(base):
    z, t, e = noise(base.latent_shape, 1, 'z', [0, 1, 2]), torch.tensor([1, 500, 998]), noise(base.latent_shape, 1, 'e', [0, 1, 2])
    v = tiny_xl_world('v_prediction')
    assert torch.allclose(v.epsilon(v.target(z, e, t), v.add_noise(z, e, t), t), e, atol=1e-4) and torch.equal(base.target(z, e, t), e)
    plan = NoisePlan(steps=2); got = errors(base, z, PROMPTS, plan)
    ts = plan.timesteps(base); eps = plan.noise(base, [0, 1])
    for i, c, s in ((0, 0, 0), (2, 1, 1)):
        x = base.add_noise(z[i:i+1], eps[s:s+1], ts[s:s+1])
        with torch.no_grad(): want = (eps[s] - base.predict(x, ts[s:s+1], base.encode_text([PROMPTS[c]]))[0]).square().mean()
        assert torch.isclose(got[i, c, s], want, rtol=1e-4)
    assert classify(base, z, PROMPTS, plan, Stages(steps=(1, 2), keep=(2, 1))).predictions.shape == (3,)

def test_the_engines_trial_and_the_scan_work(base, points):
    assert min(trial(base, 1, limit=.05)) > 0
    w, _ = adapt(base, Adaptation(kind='db'), 'x'); w = w.but(unet=shake(base.unet))
    words = [Word(name=n, prompt=f'a {n}', category='thing') for n in ('dog', 'cat')]
    pics = generate(base, [x.prompt for x in words], [1, 2], steps=1)
    assert not scan(base, base, words, pics, steps=2).terms[..., 0].any() and (scan(base, w, words, pics, steps=2).terms[..., 0] > 0).all()

FEW = dict(recipe=dict(steps=2, batch=2), images=2)
@pytest.mark.parametrize('name, source', [('db-dc', 'class+generic'), ('lora-dc', 'null'), ('cd-dc', 'instance')])
def test_methods_train_save_and_come_back_and_leave_the_base(base, points, tmp_path, name, source):
    base._key = None; before = base.key; assert source in SOURCES
    w, log = customize(base, tiny_subject(), method(name, source=source, **FEW), path=tmp_path/'adapter.safetensors', cache=tmp_path/'cache')
    assert len(log) == 2 and set(log[0]) >= {'instance', 'prior', 'correction'}
    again = load_adapted(base, tmp_path/'adapter.safetensors')
    prompts = ['a x cat', 'a cat']
    assert torch.equal(answer(w, points, prompts), answer(again, points, prompts)) and again.key == w.key
    assert not torch.equal(answer(w, points, prompts), answer(base, points, prompts))
    base._key = None; assert base.key == before
    d = differences(base, tmp_path/'adapter.safetensors')
    assert {k.split('.')[0] for k in d} == ({'unet', 'text_encoder', 'text_encoder_2'} if name == 'cd-dc' else {'unet'})
    if name == 'cd-dc':
        none = load_adapted(base, tmp_path/'adapter.safetensors', strength=0.)
        assert torch.allclose(answer(none, points, prompts), answer(base, points, prompts), atol=1e-6)

def test_custom_diffusion_teaches_both_encoders_and_moves_no_other_row(base, tmp_path):
    w, _ = customize(base, tiny_subject(), method('cd-plain', **FEW), cache=tmp_path)
    for part, m in w.encoders.items():
        row = m.get_input_embeddings(); own = base.encoders[part].get_input_embeddings().weight
        assert torch.equal(row.base.weight, own) and not torch.equal(row.row, own[row.index]), part
    a, b = w.encode_text(['a cat', 'a x cat']), base.encode_text(['a cat', 'a x cat'])
    assert torch.equal(a[0], b[0])
    for part in ((slice(77), slice(32)), (slice(77), slice(32, 80)), (77,)): assert not torch.equal(a[1][part], b[1][part])        # both, and pooled

def test_both_text_encoders_can_be_trained(base, points, tmp_path):
    m = method('db-plain', adaptation=Adaptation(text_encoder=True), **FEW)
    w, _ = customize(base, tiny_subject(), m, path=tmp_path/'a.safetensors', cache=tmp_path)
    assert not any(torch.equal(next(w.encoders[k].parameters()), next(base.encoders[k].parameters())) for k in base.encoders)
    assert torch.equal(answer(load_own(base, tmp_path/'a.safetensors'), points), answer(w, points))

def test_a_whole_adapted_pipeline_comes_back(base, points, tmp_path):
    w = base.but(unet=shake(base.unet), text_encoder=shake(base.text_encoder), text_encoder_2=shake(base.text_encoder_2))
    save_world(w, tmp_path/'w')
    assert torch.equal(answer(load_adapted(base, tmp_path/'w'), points), answer(w, points))
    assert torch.equal(answer(load_adapted(base, tmp_path/'w/unet'), points), answer(base.but(unet=w.unet), points))
    edit(tmp_path/'w/text_encoder_2/config.json', eos_token_id=513)
    refused(base, tmp_path/'w', 'eos_token_id')
    save_world(tiny_world(), tmp_path/'one'); refused(base, tmp_path/'one', 'SD 1 or SD 2')

# ---- files of other tools
def lora_of(base, write_unet, te1, te2, **end):
    f, deltas = pairs(base, [TO_K], alpha=lambda i: 3., write=write_unet)
    for part, name, said in (('text_encoder', TE1, te1), ('text_encoder_2', TE2, te2)):
        m = base.encoders[part].get_submodule(name).weight; up, down = r(len(m), 2), r(2, m.shape[1])
        f |= {f'{said}.lora_up.weight': up, f'{said}.lora_down.weight': down, f'{said}.alpha': torch.tensor(3.)}
        deltas[f'{part}.{name}'] = 1.5*up @ down
    return f, {k if k.startswith('text') else f'unet.{k}': v for k, v in deltas.items()}

def checked(base, path, deltas):
    w = load_adapted(base, path)
    assert {k.removesuffix('.weight') for k in differences(base, path)} == set(deltas)
    for part in ('unet', *base.encoders):
        for k, p in getattr(base, part).named_parameters():
            d = deltas.get(f'{part}.{k}'.removesuffix('.weight'))
            q = getattr(w, part).get_parameter(k)
            assert torch.equal(p, q) if d is None else torch.allclose(p + d.reshape(p.shape), q, atol=1e-6), k
    return w

@pytest.mark.parametrize('names', ['first', 'diffusers'])
def test_kohyas_lora_of_three_networks_is_read(base, tmp_path, names):
    "With the denoiser under the names of its first code, as kohya's trainer writes it for SDXL, and under diffusers'."
    block = first_names(base.unet)['down_blocks.1.attentions.0']
    name = {'first': lambda n: kohya(n.replace('down_blocks.1.attentions.0', block)), 'diffusers': kohya}[names]
    f, deltas = lora_of(base, name, f'lora_te1_{("text_model." + TE1).replace(".", "_")}', f'lora_te2_{TE2.replace(".", "_")}')
    assert names == 'diffusers' or any(k.startswith('lora_unet_input_blocks_3_1_') for k in f)
    said = {'ss_base_model_version': 'sdxl_base_v1-0', 'modelspec.architecture': 'stable-diffusion-xl-v1-base/lora'}
    checked(base, write(tmp_path/'a.safetensors', f, said), deltas)

@pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing:FutureWarning')     # of peft's call of transformers
def test_what_diffusers_and_peft_write_themselves_is_read(base, points, tmp_path):
    lora = lambda m, *layers: get_peft_model(clone(m), LoraConfig(r=2, lora_alpha=6, target_modules=list(layers), init_lora_weights=False))
    nets = {'unet': lora(base.unet, 'to_k')} | {k: lora(m, 'q_proj') for k, m in base.encoders.items()}
    state = {k: {n.removeprefix('base_model.model.'): v for n, v in get_peft_model_state_dict(m).items()} for k, m in nets.items()}
    for k, m in nets.items(): m.save_pretrained(tmp_path/'sides'/k)
    meta = {f'{k}_lora_adapter_metadata': nets[k].peft_config['default'].to_dict() for k in nets}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path/'d', **{f'{k}_lora_layers': v for k, v in state.items()}, **meta)
    want = base.but(**{k: m.merge_and_unload() for k, m in nets.items()})
    assert any(k.startswith('text_encoder_2.') for k in load_file(tmp_path/'d/pytorch_lora_weights.safetensors'))
    for path in ('d', 'sides'): assert same(load_adapted(base, tmp_path/path), want), path
    one = dict(weight_changes(base, tmp_path/'sides/text_encoder_2/adapter_model.safetensors'))
    assert one and {k.split('.')[0] for k in one} == {'text_encoder_2'}

def test_a_name_that_could_mean_either_encoder_is_refused(base, tmp_path):
    f = {'encoder.layers.0.mlp.fc1.lora_A.weight': r(2, 32), 'encoder.layers.0.mlp.fc1.lora_B.weight': r(64, 2)}
    refused(base, write(tmp_path/'a.safetensors', f), 'no layer for')

def test_files_of_the_other_family_are_refused_on_both_sides(base, tmp_path):
    f, _ = lora_of(base, kohya, f'lora_te1_{TE1.replace(".", "_")}', f'lora_te2_{TE2.replace(".", "_")}')
    refused(tiny_world(), write(tmp_path/'xl.safetensors', f), '(SDXL)')
    g, _ = pairs(base, [TO_K]); refused(base, write(tmp_path/'one.safetensors', g, {'ss_base_model_version': 'sd_v1'}), '(SD 1)', 'header')
    refused(tiny_world(), write(tmp_path/'v.safetensors', {'clip_l': r(2, 32), 'clip_g': r(2, 48)}), 'SDXL')
    refused(base, write(tmp_path/'sd1.safetensors', single_file(tiny_world())), 'denoiser')

def test_one_file_with_configs_of_sdxl_says_how_to_convert_it(base, folder, tmp_path):
    f = write(tmp_path/'xl.safetensors', single_file(tiny_world()))
    with pytest.raises(ForgetError, match='StableDiffusionXLPipeline'): load_world(base.spec.but(source=str(f), configs=str(folder)), 'cpu')

@pytest.mark.parametrize('way', ['clip', 'pivotal', 'diffusers script', 'bundled'])
def test_a_new_word_gets_its_vectors_in_both_encoders(base, points, tmp_path, way):
    a, b = r(2, 32), r(2, 48); f, _ = pairs(base, [TO_K])
    if way == 'clip': path, word = write(tmp_path/'toy.safetensors', {'clip_l': a, 'clip_g': b}), '<toy>'
    elif way == 'diffusers script':
        write(tmp_path/'learned_embeds_2.safetensors', {'<toy>': b}); write(tmp_path/'learned_embeds.safetensors', {'<toy>': a})
        write(tmp_path/'learned_embeds_2-steps-5.safetensors', {'<toy>': b}); path, word = tmp_path, '<toy>'
    elif way == 'bundled': path, word = write(tmp_path/'l.safetensors', f | {'bundle_emb.<toy>.clip_l': a, 'bundle_emb.<toy>.clip_g': b}), '<toy>'
    else: write(tmp_path/'l_emb.safetensors', {'clip_l': a, 'clip_g': b}); path, word = write(tmp_path/'l.safetensors', f), '<s0><s1>'
    w = load_adapted(base, path)
    assert w.spec.token == word
    for part, v in (('text_encoder', a), ('text_encoder_2', b)):
        rows = w.encoders[part].get_input_embeddings().weight
        assert torch.equal(rows[-2:], v) and torch.equal(rows[:514], base.encoders[part].get_input_embeddings().weight)
    ids = w.tokens([f'a {word}']); assert {514, 515} <= set(ids[0, :77].tolist()) and {514, 515} <= set(ids[0, 77:].tolist())
    assert torch.equal(w.encode_text(['a dog']), base.encode_text(['a dog'])) and len(base.tokenizer) == len(base.tokenizer_2) == 514
    if way == 'diffusers script': assert [x.name for x in checkpoint_files(path)] == ['learned_embeds.safetensors', 'learned_embeds_2.safetensors']

def test_a_word_as_diffusers_reads_it_means_the_same(base, tmp_path):
    "diffusers' own loader, into each encoder, then its own pipeline."
    a, b = r(32), r(48); w = add_token(base, '<toy>', {'text_encoder': a, 'text_encoder_2': b})
    save_world(base, tmp_path); p = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    p.load_textual_inversion({'<toy>': a}, token='<toy>', text_encoder=p.text_encoder, tokenizer=p.tokenizer)
    p.load_textual_inversion({'<toy>': b}, token='<toy>', text_encoder=p.text_encoder_2, tokenizer=p.tokenizer_2)
    e, _, pooled, _ = p.encode_prompt(['a <toy> dog'], device='cpu', do_classifier_free_guidance=False)
    c = w.encode_text(['a <toy> dog'])
    assert torch.allclose(c[:, :-1], e, atol=1e-6) and torch.allclose(c[:, -1, :40], pooled, atol=1e-6)

def test_half_a_word_is_refused(base, tmp_path):
    refused(base, write(tmp_path/'a.safetensors', {'clip_l': r(2, 32)}), 'each needs vectors of its own')
    refused(base, write(tmp_path/'b.safetensors', {'clip_l': r(2, 32), 'clip_g': r(1, 48)}), '1 and 2 vectors')
    write(tmp_path/'c/learned_embeds_2.safetensors', {'<toy>': r(48)}); write(tmp_path/'c/learned_embeds.safetensors', {'<toy>': r(32)})
    refused(tiny_world(), tmp_path/'c', 'second text encoder', 'SDXL')

def test_stacks_add_up_in_all_three_networks(base, points, tmp_path):
    f, deltas = lora_of(base, kohya, f'lora_te1_{TE1.replace(".", "_")}', f'lora_te2_{TE2.replace(".", "_")}')
    a = write(tmp_path/'a.safetensors', f); w, params = adapt(base, Adaptation(kind='cd'), 'x')
    with torch.no_grad():
        for p in params.values(): p.add_(r(*p.shape))
    save_adapted(tmp_path/'cd.safetensors', base, params, Adaptation(kind='cd'), 'x')
    word = write(tmp_path/'toy.safetensors', {'clip_l': r(32), 'clip_g': r(48)})
    both = load_together(base, [(a, .5), (tmp_path/'cd.safetensors', 1.), (word, 1.)])
    for part, name in (('text_encoder', TE1), ('text_encoder_2', TE2)):
        new, old = (x.encoders[part].get_submodule(name).weight for x in (both, base))
        assert torch.allclose(new, old + .5*deltas[f'{part}.{name}'], atol=1e-6)
        rows = both.encoders[part].get_input_embeddings().weight; taught = w.encoders[part].get_input_embeddings()
        assert torch.allclose(rows[taught.index], taught.row, atol=1e-6) and len(rows) == 515
    with pytest.raises(ForgetError, match='teach the word'): load_together(base, [(tmp_path/'cd.safetensors', 1.), (tmp_path/'cd.safetensors', 1.)])
