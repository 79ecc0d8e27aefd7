"""Worlds as the hub and people keep them: caches, variants, shards, older names, one file; what is refused; and what the doctor says of them."""
import os, re, shutil, socket

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from wild import single_file, single_vae

from openworld_forget.core import ForgetError, read_json, write_json
from openworld_forget.metrics import judges
from openworld_forget.metrics.judges import check_judges, clip_judge, feature_judge
from openworld_forget.worlds import load
from openworld_forget.worlds.doctor import command, doctor, doctor_text, missing
from openworld_forget.worlds.load import FEATURES, SIZES, fetch, find_source, how_to_get, load_world, local_path, own_files, place_of
from openworld_forget.worlds.tiny import save_world, tiny_world
from openworld_forget.worlds.world import WORLDS, spec_of

PIN, NAME = 'b7' + 38*'0', 'someone/some-sd'
WEIGHTS = {'text_encoder': 'model', 'vae': 'diffusion_pytorch_model', 'unet': 'diffusion_pytorch_model'}

@pytest.fixture(scope='module')
def tiny(): return tiny_world()

@pytest.fixture(scope='module')
def saved(tmp_path_factory, tiny):
    "A world in diffusers layout; copied before it is changed."
    save_world(tiny, d := tmp_path_factory.mktemp('saved')/'sd')
    return d

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty cache of the hub; every connection is an error."
    def never(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(load.huggingface_hub, 'get_hf_file_metadata', never)
    monkeypatch.setattr(load.huggingface_hub.HfApi, 'model_info', never)
    monkeypatch.setattr(socket.socket, 'connect', never)
    return tmp_path/'hub'

def cached(hub, folder, source=NAME, commit=PIN):
    "A folder as the hub's library keeps it: a snapshot of links to blobs, and the commit of main."
    d = hub/f'models--{source.replace("/", "--")}'
    for i, f in enumerate(sorted(f for f in folder.rglob('*') if f.is_file())):
        (blob := d/'blobs'/f'{i:064x}').parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, blob)
        (link := d/'snapshots'/commit/f.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (d/'refs').mkdir()
    (d/'refs/main').write_text(commit)
    return d/'snapshots'/commit

def refused(f, *says):
    with pytest.raises(ForgetError) as e: f()
    for s in says: assert s in str(e.value), str(e.value)
    return str(e.value)

def mine(source, **more): return {'name': 'mine', 'source': str(source), **more}

def same(a, b):
    "Do two worlds read, see and predict the same?"
    z, t = torch.ones(1, *a.latent_shape), torch.tensor([500])
    c, x = a.encode_text(['a dog']), torch.full((1, 3, a.resolution, a.resolution), .3)
    return (torch.equal(c, b.encode_text(['a dog'])) and torch.equal(a.predict(z, t, c), b.predict(z, t, c))
            and torch.equal(a.decode(z), b.decode(z)) and torch.equal(a.encode(x), b.encode(x)) and a.prediction == b.prediction)

# ---------------------------------------------------------------- layouts
def full(w, d): pass

def fp16(w, d):
    for part, stem in WEIGHTS.items():
        f = d/part/f'{stem}.safetensors'
        save_file({k: v.half() for k, v in load_file(f).items()}, f.with_name(f'{stem}.fp16.safetensors'), metadata={'format': 'pt'})
        f.unlink()

def sharded(w, d, **how):
    for part, stem in WEIGHTS.items():
        (d/part/f'{stem}.safetensors').unlink()
        getattr(w, part).save_pretrained(d/part, max_shard_size='60KB', **how)
        assert len(list(d.glob(f'{part}/*-of-*.safetensors'))) > 1

def sharded_fp16(w, d): sharded(w, d, variant='fp16')

def older_names(w, d):
    f = d/'text_encoder/model.safetensors'
    now = {f'text_model.{k.removeprefix("text_model.")}': v for k, v in load_file(f).items()}
    save_file({**now, 'text_model.embeddings.position_ids': torch.arange(77)[None]}, f, metadata={'format': 'pt'})

def beside_pickles(w, d):
    "As hub repositories are: pickles, several variants and a whole file lie beside what is read."
    for part, stem in WEIGHTS.items():
        for other in ('bin', 'fp16.safetensors', 'non_ema.safetensors', 'fp16.bin'): (d/part/f'{stem}.{other}').write_bytes(b'never read')
    (d/'v1-5-pruned.ckpt').write_bytes(b'never read')

@pytest.mark.parametrize('layout', [full, fp16, sharded, sharded_fp16, older_names, beside_pickles], ids=lambda f: f.__name__)
def test_every_layout_loads_from_a_folder_and_from_the_cache_without_a_network(layout, tiny, saved, hub, tmp_path):
    shutil.copytree(saved, d := tmp_path/'sd')
    layout(tiny, d)
    w = load_world(mine(d), 'cpu')
    if layout is fp16: assert all(torch.equal(v, v.half().float()) for v in w.unet.state_dict().values())
    else: assert same(w, tiny)
    assert w.dtype == w.text_encoder.dtype == w.vae.dtype == torch.float32
    folder = cached(hub, d)
    for revision in (PIN, 'main'):
        assert find_source(NAME, revision, 'World m', pinned=False) == folder
    v = load_world(mine(NAME, revision=PIN), 'cpu')
    assert v.key == w.key and same(v, w)
    assert not [n for n in doctor(mine(NAME, revision=PIN)) if n.kind == 'weights' and not n.present]

def test_a_judge_in_half_precision_or_in_shards_loads(hub, tmp_path):
    model('vit').save_pretrained(tmp_path/'full')
    whole = feature_judge(str(tmp_path/'full')).network.state_dict()
    model('vit').save_pretrained(tmp_path/'many', max_shard_size='20KB')
    assert len(list((tmp_path/'many').glob('*-of-*'))) > 1
    model('vit').half().save_pretrained(tmp_path/'half', variant='fp16')
    many, half = (feature_judge(str(tmp_path/k)).network.state_dict() for k in ('many', 'half'))
    assert all(torch.equal(many[k], v) and torch.equal(half[k], v.half().float()) for k, v in whole.items())

# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize('part', WEIGHTS)
def test_pickles_alone_are_refused_with_the_remedy(saved, hub, tmp_path, part):
    shutil.copytree(saved, d := tmp_path/'sd')
    f = d/part/f'{WEIGHTS[part]}.safetensors'
    f.rename(f.with_suffix('.bin'))
    for source in (mine(d), mine(NAME, revision=PIN)):
        if source['source'] == NAME: cached(hub, d)
        refused(lambda source=source: load_world(source), f'{part}/{f.name} (there is {f.stem}.bin)', 'pickles', 'safe_serialization=True')

@pytest.mark.parametrize('lost', ['shard', 'blob', 'part', 'merges'])
def test_a_download_that_was_stopped_is_one_error(tiny, saved, hub, tmp_path, lost):
    "A shard, the end of a link, a folder, half of a tokenizer: what is missing is named, and the command that gets it."
    shutil.copytree(saved, d := tmp_path/'sd')
    sharded(tiny, d)
    (d/'tokenizer/tokenizer.json').unlink(missing_ok=True)
    write_json(d/'tokenizer/vocab.json', {}), (d/'tokenizer/merges.txt').write_text('')
    folder = cached(hub, d)
    shard = sorted((folder/'unet').glob('*-of-*'))[1]
    if lost == 'shard': shard.unlink()
    if lost == 'blob': shard.resolve().unlink()
    if lost == 'part': shutil.rmtree(folder/'vae')
    if lost == 'merges': (folder/'tokenizer/merges.txt').unlink()
    named = {'part': 'vae/', 'merges': 'tokenizer/merges.txt'}.get(lost, f'unet/{shard.name}')
    says = refused(lambda: load_world(mine(NAME, revision=PIN)), f'the cache lacks {named},', f'hf download {NAME} --revision {PIN}', 'HF_HUB_OFFLINE')
    assert says.count('.safetensors,') <= 1 and len(says) < 900
    assert [n.name for n in missing(doctor(mine(NAME, revision=PIN))) if n.kind == 'weights'] == [named.split('/')[0]]

def test_a_file_that_is_cut_says_to_get_it_again(saved, hub, tmp_path):
    folder = cached(hub, saved)
    blob = (folder/'vae/diffusion_pytorch_model.safetensors').resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    refused(lambda: load_world(mine(NAME, revision=PIN)), 'its vae could not be loaded', '--force-download')
    assert 'cut short' in next(n.note for n in doctor(mine(NAME, revision=PIN)) if n.name == 'vae')

@pytest.mark.parametrize('part', WEIGHTS)
def test_tensors_that_a_file_lacks_are_never_made_up(saved, tmp_path, part):
    "The libraries fill them with random numbers and leave out what they do not know."
    for i, change in enumerate((lambda t, k: t.pop(k), lambda t, k: t.update({'more.weight': t[k]}))):
        shutil.copytree(saved, d := tmp_path/f'sd{i}')
        f = d/part/f'{WEIGHTS[part]}.safetensors'
        tensors = load_file(f)
        change(tensors, key := sorted(tensors)[3])
        save_file({k: v.clone() for k, v in tensors.items()}, f, metadata={'format': 'pt'})
        refused(lambda d=d: load_world(mine(d), 'cpu'), part, *(['lacks', key] if i == 0 else ['has no place for', 'more.weight']))

def test_a_text_encoder_may_bring_the_other_half_of_its_clip(tiny, saved, tmp_path):
    shutil.copytree(saved, d := tmp_path/'sd')
    f = d/'text_encoder/model.safetensors'
    save_file({**load_file(f), 'vision_model.x': torch.ones(2), 'logit_scale': torch.ones(1)}, f, metadata={'format': 'pt'})
    assert same(load_world(mine(d), 'cpu'), tiny)

# ---------------------------------------------------------------- one file
def open_clip(w):
    "A text encoder as single files of SD 2 have it: OpenCLIP's names, one more layer at its end, a projection."
    own, out = {k.removeprefix('text_model.'): v for k, v in w.text_encoder.state_dict().items()}, {}
    names = {'embeddings.token_embedding.weight': 'token_embedding.weight', 'embeddings.position_embedding.weight': 'positional_embedding',
             'final_layer_norm.weight': 'ln_final.weight', 'final_layer_norm.bias': 'ln_final.bias'}
    inside = {'layer_norm1': 'ln_1', 'layer_norm2': 'ln_2', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj', 'self_attn.out_proj': 'attn.out_proj'}
    for k, v in own.items():
        if k in names: out[names[k]] = v
        elif (m := re.fullmatch(r'encoder\.layers\.(\d+)\.(.+)\.(weight|bias)', k)) and m[2] in inside:
            out[f'transformer.resblocks.{m[1]}.{inside[m[2]]}.{m[3]}'] = v
    n = w.text_encoder.config.num_hidden_layers
    for i in range(n):
        for kind in ('weight', 'bias'):
            out[f'transformer.resblocks.{i}.attn.in_proj_{kind}'] = torch.cat([own[f'encoder.layers.{i}.self_attn.{q}_proj.{kind}'] for q in 'qkv'])
    out |= {k.replace('blocks.0.', f'blocks.{n}.'): v + 1 for k, v in out.items() if 'blocks.0.' in k}
    out |= {'text_projection': torch.eye(w.text_encoder.config.hidden_size), 'logit_scale': torch.ones(()), 'attn_mask': torch.ones(77, 77)}
    return {f'cond_stage_model.model.{k}': v for k, v in out.items() if k != 'attn_mask'}

def whole_file(w, path, two=False, dtype=torch.float32, drop=(), **more):
    "A world in one file, as the first code saves it."
    t = single_file(w)
    if two: t = {k: v for k, v in t.items() if not k.startswith('cond_stage')} | open_clip(w)
    t |= {**single_vae(w.vae), 'model_ema.decay': torch.ones(1), 'betas': torch.ones(3), **more}
    save_file({k: v.to(dtype if v.is_floating_point() else v.dtype).clone().contiguous() for k, v in t.items() if not k.startswith(drop or '?')}, path)
    return path

@pytest.mark.parametrize('kind', ['SD 1', 'SD 2'])
def test_one_file_is_a_world_with_the_configs_of_what_it_is_like(kind, hub, tmp_path, monkeypatch):
    "Here those of a world of the hub, of which the cache holds no weights; the state of the random numbers stays."
    other = tiny_world('v_prediction' if kind == 'SD 2' else 'epsilon', seed=3)
    save_world(other, tmp_path/'base')
    for f in (tmp_path/'base').rglob('*.safetensors'): f.unlink()
    cached(hub, tmp_path/'base')
    monkeypatch.setitem(WORLDS, 'small', WORLDS['sd15'].but(name='small', source=NAME, revision=PIN))
    f = whole_file(other, tmp_path/'model.safetensors', two=kind == 'SD 2')
    before = torch.get_rng_state()
    w = load_world(mine(f, like='small'), 'cpu')
    assert torch.equal(before, torch.get_rng_state())
    assert same(w, other) and w.unet.conv_in.weight.device.type == 'cpu' and not any(p.requires_grad for p in w.unet.parameters())
    assert w.key == other.but(spec=w.spec).key
    assert own_files(w.spec) == [f]
    half = load_world(mine(whole_file(other, tmp_path/'half.safetensors', kind == 'SD 2', torch.float16), configs=str(tmp_path/'base')), 'cpu')
    assert half.dtype == torch.float32 and torch.equal(half.unet.conv_in.weight, w.unet.conv_in.weight.half().float())

def test_an_upper_case_ending_is_the_same_file(tiny, saved, tmp_path):
    f = whole_file(tiny, tmp_path/'Model.SafeTensors')
    assert spec_of(mine(f)).configs and same(load_world(mine(f, configs=str(saved)), 'cpu'), tiny)

def test_a_vae_with_attention_in_one_file(tmp_path):
    "Its layers were convolutions of one pixel."
    from diffusers import AutoencoderKL
    from openworld_forget.worlds.load import made_ready
    w = tiny_world()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = AutoencoderKL.from_config({**w.vae.config, 'mid_block_add_attention': True})
    w = w.but(vae=made_ready(vae))
    save_world(w, tmp_path/'base')
    f = whole_file(w, tmp_path/'m.safetensors')
    assert any(v.ndim == 4 and '.attn_1.q.' in k for k, v in load_file(f).items())
    assert same(load_world(mine(f, configs=str(tmp_path/'base')), 'cpu'), w)

def true_depth(two):
    "The blocks, layers and switches of Stable Diffusion 1.5 or 2.1, each layer narrow."
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    from openworld_forget.worlds.load import made_ready
    w = tiny_world('v_prediction' if two else 'epsilon')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            8, block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_num_groups=8, cross_attention_dim=32,
            attention_head_dim=[1, 2, 4, 4] if two else 4, use_linear_projection=two)
        vae = AutoencoderKL(3, 3, ['DownEncoderBlock2D']*4, ['UpDecoderBlock2D']*4, (8, 16, 16, 16), 2, latent_channels=4, norm_num_groups=4, sample_size=64)
        text = CLIPTextModel(CLIPTextConfig.from_dict({**w.text_encoder.config.to_dict(), 'num_hidden_layers': 23 if two else 12}))
    return w.but(unet=made_ready(unet), vae=made_ready(vae), text_encoder=made_ready(text))

@pytest.mark.parametrize('two', [False, True], ids=['SD 1.5', 'SD 2.1'])
def test_one_file_of_the_true_depth(two, tmp_path):
    "Every tensor of the real files, by the names that they have there."
    w = true_depth(two)
    save_world(w, tmp_path/'base')
    f = whole_file(w, tmp_path/'m.safetensors', two)
    attn = 'model.diffusion_model.middle_block.1.proj_in.weight'
    known = {k: v.ndim for k, v in load_file(f).items()}
    for k in ('model.diffusion_model.output_blocks.8.2.conv.weight', 'model.diffusion_model.input_blocks.11.0.out_layers.3.weight',
              'first_stage_model.encoder.mid.attn_1.q.weight', 'first_stage_model.decoder.up.3.block.2.conv2.weight', 'first_stage_model.quant_conv.weight',
              'cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight' if two else
              'cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias'): assert k in known, k
    assert known[attn] == (2 if two else 4)
    assert same(load_world(mine(f, configs=str(tmp_path/'base')), 'cpu'), w)

@pytest.mark.parametrize('change, says', [
    (dict(drop=('first_stage_model',)), ['holds no vae', 'first_stage_model']), (dict(drop=('cond_stage_model',)), ['holds no text_encoder']),
    (dict(drop=('model.diffusion_model.out.2.bias',)), ['its unet is not', 'like: sd21']),
    (dict(drop=('first_stage_model.quant_conv',)), ['its vae is not']),
    ({'model.diffusion_model.more.weight': torch.ones(2)}, ['its unet is not', 'model.diffusion_model.more.weight']),
    ({'conditioner.embedders.0.x': torch.ones(2)}, ['conditioner.embedders.0.x', 'from_single_file', 'source: folder'])])
def test_a_file_that_is_no_whole_world_is_refused(tiny, saved, tmp_path, change, says):
    f = whole_file(tiny, tmp_path/'m.safetensors', **change)
    refused(lambda: load_world(mine(f, configs=str(saved)), 'cpu'), str(f), *says)

def test_a_file_of_another_architecture_is_refused(saved, tmp_path, tiny):
    "Another width of the text; the configs are those of `saved`."
    shutil.copytree(saved, d := tmp_path/'wide')
    for part, key, value in (('unet', 'cross_attention_dim', 64), ('text_encoder', 'hidden_size', 64)):
        write_json(d/part/'config.json', {**read_json(d/part/'config.json'), key: value})
    f = whole_file(tiny, tmp_path/'m.safetensors')
    refused(lambda: load_world(mine(f, configs=str(d)), 'cpu'), 'is not the text_encoder that', 'another shape', 'like: sd21')

def test_a_file_without_configs_says_where_they_come_from(tiny, hub, tmp_path):
    f = whole_file(tiny, tmp_path/'m.safetensors')
    says = refused(lambda: load_world(mine(f)), 'its configs and tokenizer, 2 MB', WORLDS['sd15'].source, 'hf download', '"*.json"')
    assert 'model.safetensors"' not in says                                  # no weights are asked for
    refused(lambda: place_of(spec_of(mine(f)).but(configs=None)), 'without configs and tokenizer', 'like: sd15')
    refused(lambda: load_world(mine(f, configs='no/such/folder')), 'no/such/folder')

# ---------------------------------------------------------------- fetching
def test_only_what_is_read_is_fetched(saved, tiny, hub, tmp_path, monkeypatch):
    "Of a repository with everything: configs, words, one kind of weights; then it is read from the cache."
    shutil.copytree(saved, d := tmp_path/'sd')
    beside_pickles(tiny, d)
    names = [f.relative_to(d).as_posix() for f in d.rglob('*') if f.is_file()]
    asked = {}
    class Api:
        def model_info(self, source, revision, timeout):
            return type('I', (), dict(sha=PIN, siblings=[type('S', (), dict(rfilename=n)) for n in names]))
    def download(source, revision, allow_patterns):
        asked.update(source=source, revision=revision, names=allow_patterns)
        for n in set(names) - set(allow_patterns): (d/n).unlink()
        return str(cached(hub, d))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(load.huggingface_hub, 'get_hf_file_metadata', lambda *a, **k: None)
    monkeypatch.setattr(load.huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(load.huggingface_hub, 'snapshot_download', download)
    assert find_source(NAME, PIN, 'World m', get=False) is None and not asked
    assert same(load_world(mine(NAME, revision=PIN), 'cpu'), tiny)
    assert asked['revision'] == PIN
    assert {'vae/diffusion_pytorch_model.safetensors', 'model_index.json', 'tokenizer/tokenizer_config.json'} <= set(asked['names'])
    assert not [n for n in asked['names'] if n.endswith(('.bin', '.ckpt', 'fp16.safetensors', 'non_ema.safetensors'))]

def test_a_repository_that_has_only_pickles_is_not_fetched(hub, monkeypatch):
    names = ['config.json', 'pytorch_model.bin', 'vocab.json', 'merges.txt']
    class Api:
        def model_info(self, *a, **k): return type('I', (), dict(sha=PIN, siblings=[type('S', (), dict(rfilename=n)) for n in names]))
    monkeypatch.setattr(load.huggingface_hub, 'HfApi', Api)
    refused(lambda: fetch('someone/clip', None, 'Judge', ('',)), PIN, 'there is pytorch_model.bin', 'pull request')
    class Gone:
        def model_info(self, *a, **k): raise OSError('no space left')
    monkeypatch.setattr(load.huggingface_hub, 'HfApi', Gone)
    refused(lambda: fetch('someone/clip', None, 'Judge', ('',)), 'could not be fetched', 'no space left')

@pytest.mark.parametrize('source, parts', [('stable-diffusion-v1-5/stable-diffusion-v1-5', load.PARTS), (NAME, load.PARTS), (NAME, ('',))])
def test_the_command_that_is_printed_does_what_it_says(source, parts, monkeypatch):
    "It is given to the hub's own program, which takes one pattern after each --include."
    import shlex
    from fnmatch import fnmatch
    from huggingface_hub.cli import download
    from huggingface_hub.cli.hf import app
    got = {}
    def take(**how):
        got.update(how)
        return '/x'
    monkeypatch.setattr(download, 'snapshot_download', take)
    program, *argv = shlex.split(how_to_get(source, PIN, parts))
    app.main(args=argv, standalone_mode=False)
    assert program == 'hf' and got['repo_id'] == source and got['revision'] == PIN
    def takes(n): return any(fnmatch(n, p) for p in got['allow_patterns']) and not any(fnmatch(n, p) for p in got['ignore_patterns'] or [])
    wanted = ['model_index.json', 'tokenizer/merges.txt', *[f'{p}/{s}.safetensors' for p, s in WEIGHTS.items()]]
    if '' in parts: wanted = ['model.safetensors', 'vocab.json']
    assert all(map(takes, wanted)) and not any(map(takes, ('unet/diffusion_pytorch_model.bin', 'v1-5-pruned.ckpt')))
    assert '' in parts or not takes('v1-5-pruned.safetensors') and not takes('safety_checker/model.safetensors')

# ---------------------------------------------------------------- definitions
def test_every_world_and_judge_of_the_hub_is_pinned_to_a_commit():
    hex40 = re.compile(r'[0-9a-f]{40}')
    for s in WORLDS.values():
        if local_path(s.source).is_dir() or load.is_own(local_path(s.source)): continue
        assert hex40.fullmatch(s.revision) and hex40.fullmatch(s.clip_revision) and hex40.fullmatch(s.features.partition('@')[2]), s.name
        assert s.source in SIZES and s.clip in SIZES and s.features.partition('@')[0] in SIZES
    assert all(hex40.fullmatch(v.partition('@')[2]) for v in FEATURES.values())

def test_stable_diffusion_2_1_is_a_world_by_name(hub):
    refused(lambda: load_world('sd21'), "World 'sd21'", WORLDS['sd21'].source, WORLDS['sd21'].revision, '5.2 GB', 'hf download')
    assert spec_of(mine('a/b.safetensors', like='sd21')).configs == f'{WORLDS["sd21"].source}@{WORLDS["sd21"].revision}'
    for more in (dict(source='x/y'), dict(revision=PIN, source=WORLDS['sd21'].source)): assert spec_of({'name': 'm', 'like': 'sd21', **more}).configs is None

# ---------------------------------------------------------------- judges
def model(kind, seed=0):
    "A judge's network, small and random, in the layout of the real one."
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == 'vit': return ViTModel(ViTConfig(**small, intermediate_size=64, image_size=32, patch_size=8), add_pooling_layer=False).eval()
        if kind == 'dinov2': return Dinov2Model(Dinov2Config(**small, image_size=518, patch_size=14)).eval()
        text = dict(vocab_size=514, max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513, intermediate_size=64, **small)
        vision = dict(image_size=32, patch_size=16, intermediate_size=64, **small)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()

@pytest.fixture
def judged(hub, tmp_path, tiny):
    "A cache with the judges under their names and commits."
    for short, kind in (('dino-vits16', 'vit'), ('dinov2-small', 'dinov2'), ('clip-vit-base-patch32', 'clip')):
        model(kind).save_pretrained(d := tmp_path/short)
        if kind == 'clip': tiny.tokenizer.save_pretrained(d)
        write_json(d/'preprocessor_config.json', dict(crop_size=dict(height=224, width=224), image_mean=[.4]*3, image_std=[.2]*3))
        source, _, commit = FEATURES[short].partition('@')
        cached(hub, d, source, commit)
    return hub

def test_judges_load_from_the_cache_by_their_short_names(judged):
    x = torch.arange(2*3*40*40, dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 3, 40, 40)
    for short, size, d in (('dino-vits16', 32, 32), ('dinov2-small', 224, 32), ('clip-vit-base-patch32', 32, 16)):
        j = feature_judge(short)
        source, _, commit = FEATURES[short].partition('@')
        assert (j.name, j.size, j.mean, tuple(j.embed(x).shape)) == (f'{source}@{commit[:7]}', size, (.4,)*3, (2, d))
        assert feature_judge(FEATURES[short]) is j
    j, v = feature_judge('dinov2-small'), model('dinov2')
    with torch.no_grad(): assert torch.allclose(j.embed(x), v(j.prepare(x)).pooler_output, atol=1e-5)
    assert feature_judge('clip-vit-base-patch32') is clip_judge(*FEATURES['clip-vit-base-patch32'].split('@'))
    check_judges(spec_of('sd15'))

@pytest.mark.parametrize('name', ['inception', 'Inception-v3', 'inception-v3-compat'])
def test_inception_is_refused_with_the_true_reason(name):
    refused(lambda: feature_judge(name), 'pickles', 'torchvision', 'KID uses the features', 'dinov2-small')
    refused(lambda: check_judges(spec_of('mini').but(features=name)), 'Inception')

def test_there_is_no_inception_in_what_is_installed():
    "Why it is refused; should one of these come, the refusal is to be thought over."
    import importlib.util
    assert not [m for m in ('torchvision', 'torch_fidelity', 'timm', 'pytorch_fid') if importlib.util.find_spec(m)]

def test_a_judge_without_all_of_its_tensors_is_refused(judged):
    source, _, commit = FEATURES['dino-vits16'].partition('@')
    blob = (find_source(source, commit, 'x', ('',))/'model.safetensors').resolve()
    tensors = load_file(blob)
    key = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != key}, blob, metadata={'format': 'pt'})
    judges._vision.cache_clear()
    refused(lambda: feature_judge('dino-vits16'), 'lacks 1 tensors', key)

# ---------------------------------------------------------------- the doctor
@pytest.fixture
def bare(hub, tmp_path, monkeypatch):
    "A machine without anything."
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    return hub

def test_the_doctor_of_a_machine_without_anything(bare, capsys):
    "Every part, its size, where it was looked for, the command; nothing is asked of the network, also where that is allowed."
    constants.HF_HUB_OFFLINE = False                                          # the fixture puts it back
    assert command(['sd15']) == 1
    says = capsys.readouterr().out
    for s in (*load.PARTS, '3.4 GB', '605 MB', str(bare), WORLDS['sd15'].revision, how_to_get(WORLDS['sd15'].source, WORLDS['sd15'].revision),
              'openai/clip-vit-base-patch32', 'facebook/dino-vits16', 'facebook/dinov2-small', 'benchmarks', 'class.txt', 'cifar10', 'HF_HUB_OFFLINE=1'):
        assert s in says, s
    lost = {n.name for n in missing(doctor('sd15'))}
    assert {*load.PARTS, 'openai/clip-vit-base-patch32', 'facebook/dino-vits16', 'benchmarks', 'subjects'} == lost
    assert not bare.exists()                                                  # it makes nothing

def test_the_doctor_is_content_when_all_is_there(judged, saved, tmp_path, monkeypatch, capsys):
    from PIL import Image
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    for p in ('benchmarks/pets/cat/1.png', 'benchmarks/pets/dog/1.png', 'subjects/mug/1.png'):
        (f := tmp_path/'data'/p).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(f)
    assert command([str(saved)]) == 0
    says = capsys.readouterr().out
    assert 'All 14 parts that a run needs are here.' in says and '1: pets' in says and '1: mug' in says and 'MISSING' not in says
    shutil.copytree(saved, d := tmp_path/'sd')
    (d/'unet/config.json').unlink()
    assert command([str(d)]) == 1 and 'lacks unet/config.json' in capsys.readouterr().out

def test_the_doctor_of_the_shipped_world_needs_nothing(bare): assert not missing(doctor('mini')) and 'MISSING' not in doctor_text('mini', doctor('mini'))

def test_the_doctor_of_one_file(tiny, saved, bare, tmp_path):
    f = whole_file(tiny, tmp_path/'m.safetensors')
    needs = {n.name: n for n in doctor(mine(f, like='sd21')) if n.kind == 'weights'}
    assert needs['m.safetensors'].present and not needs['unet (configs)'].present and WORLDS['sd21'].source in needs['unet (configs)'].get
    assert all(n.present for n in doctor(mine(f, configs=str(saved))) if n.kind == 'weights')
    f.write_bytes(f.read_bytes()[:-1])
    assert 'm.safetensors' in [n.name for n in missing(doctor(mine(f, configs=str(saved))))]

@pytest.mark.parametrize('more, name, says', [
    (dict(source='someone/x'), 'someone/x', 'give its revision'), (dict(source='/no/such/folder'), '/no/such/folder', 'does not exist'),
    (dict(source='weights/mini', features='inception'), 'inception', "published as pickles"),
    (dict(source='weights/mini', clip='weights/none'), 'weights/none', 'does not exist'),
    (dict(source='weights/mini', data='no.such.module'), 'no.such.module', 'cannot be imported')])
def test_what_cannot_be_right_stands_in_the_records(bare, more, name, says):
    n = next(n for n in doctor({'name': 'm', **more}) if n.name == name)
    assert not n.present and n.needed and says.lower() in n.note.lower(), n.note

def test_a_clip_without_a_tokenizer_is_seen(judged):
    source, commit = WORLDS['sd15'].clip, WORLDS['sd15'].clip_revision
    folder = find_source(source, commit, 'x', ('',))
    for n in ('tokenizer.json', 'vocab.json'): (folder/n).unlink(missing_ok=True)
    n = next(n for n in doctor('sd15') if n.name == source)
    assert not n.present and 'tokenizer' in n.note and 'hf download' in n.get

def test_a_world_that_is_not_defined_is_an_error(): refused(lambda: command(['sd51']), 'sd15')

def test_a_full_disk_and_a_device_that_is_none_are_needs(bare, monkeypatch):
    from openworld_forget.worlds import doctor as d
    monkeypatch.setattr(d, '_disk', lambda p: 3_000_000_000)
    assert {'disk for weights'} == {n.name for n in missing(doctor('sd15')) if n.kind == 'machine'}
    monkeypatch.setattr(d, '_memory', lambda p: 4_000_000_000)
    assert 'memory' in {n.name for n in missing(doctor('sd15'))}
    monkeypatch.setenv('OWF_DEVICE', 'tpu')
    assert 'tpu' in next(n.note for n in doctor('mini') if n.kind == 'machine')
