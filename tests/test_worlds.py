"""What a world takes and what it refuses: images, latents, timesteps, prompts; where its weights are looked for, and how soon it says that there are none."""
import importlib, inspect, shutil, time

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from openworld_forget.worlds import load
from openworld_forget.core import ForgetError, content_key, generator, read_json, root, write_json
from openworld_forget.worlds.generate import generate
from openworld_forget.metrics.judges import check_judges, clip_judge, dino_judge, feature_judge
from openworld_forget.study.files import world_data
from openworld_forget.worlds.data import DataSource, MoreData, data_source, missing_members
from openworld_forget.worlds.folders import check_data
from openworld_forget.worlds.load import default_device, find_source, is_own, load_world, missing_parts
from openworld_forget.worlds.world import provider, spec_of
from openworld_forget.worlds.tiny import save_world, tiny_world

SD = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
PIN = '451f4fe16113bff5a5d2269ed5ad43b0592e9a14'

@pytest.fixture(scope='module')
def w(): return tiny_world()

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A world in diffusers layout; copied before it is damaged."
    d = tmp_path_factory.mktemp('saved')/'sd'
    save_world(tiny_world(), d)
    return d

def refused(f, *says):
    with pytest.raises(ForgetError) as e: f()
    for s in says: assert s in str(e.value), str(e.value)
    return str(e.value)

# ---------------------------------------------------------------- images, latents, timesteps
def test_bytes_mean_what_they_say(w):
    "uint8 images give exactly what the same images as floats give."
    x = (255*torch.rand(3, 3, 64, 64, generator=generator(0, 'x'))).to(torch.uint8)
    assert torch.equal(w.encode(x), w.encode(x.float()/255))
    assert w.encode(x[:0]).shape == (0, *w.latent_shape) and w.decode(w.encode(x)[:0]).shape == (0, 3, 64, 64)
    assert torch.allclose(w.encode(x.double()/255), w.encode(x), atol=1e-5)

def test_a_benchmark_of_the_mini_world_as_it_is():
    "`benchmark(...).images` straight into `encode` is what the classifier is given."
    from openworld_forget.mini.data import benchmark
    m, b = load_world('mini', 'cpu'), benchmark('animals', 'known', per_class=1)
    assert torch.equal(m.encode(b.images[:4]), m.encode(b.images[:4].float()/255))

X = torch.rand(2, 3, 64, 64, generator=generator(0, 'y'))
IMAGES = {
    'floats of 0 to 255': (255*X, '[0, 1]'), 'floats of -1 to 1': (2*X - 1, '[0, 1]'), 'int64': ((255*X).long(), 'int64'), 'bool': (X > .5, 'bool'),
    'NaN': (X.clone().fill_(torch.nan), '[0, 1]'), 'one NaN': (torch.where(X == X.max(), torch.nan, X), '[0, 1]'), 'infinity': (X/0., '[0, 1]'),
    'one image': (X[0], 'Expected images'), 'channels last': (X.permute(0, 2, 3, 1), 'Expected images'), 'grey': (X[:, :1], 'Expected images'),
    'another size': (X[..., :32], 'Expected images'), 'NumPy': (X.numpy(), 'ndarray'), 'a list': ([X[0]], 'list'), 'slightly above': (X + .01, '[0, 1]')}
@pytest.mark.parametrize('name', IMAGES)
def test_what_is_no_image_is_refused(w, name): refused(lambda: w.encode(IMAGES[name][0]), IMAGES[name][1])

def test_what_are_no_latents_is_refused(w):
    z = w.encode(X)
    for bad in (X, (255*X).to(torch.uint8), z[0], z.long(), z.tolist(), z[:, :3]): refused(lambda bad=bad: w.decode(bad), 'latents')
    for bad in (z*torch.nan, z/0): refused(lambda bad=bad: w.decode(bad), 'NaN or infinite', 'black')

def test_timesteps_and_noise_fit_their_latents(w):
    z, t, c = w.encode(X), torch.tensor([10, 900]), w.encode_text(['a dog', 'a cat'])
    e = torch.randn(z.shape, generator=generator(0, 'e'))
    assert w.predict(w.add_noise(z, e, t), t, c).shape == z.shape
    for bad in (torch.tensor([-1, 5]), torch.tensor([5, 1000]), torch.tensor([5., 6.])): refused(lambda bad=bad: w.add_noise(z, e, bad), 'from 0 to 999')
    for bad in (torch.tensor(5), torch.tensor([5]), torch.tensor([[5], [6]]), torch.tensor([1, 2, 3]), 5, [1, 2]):
        refused(lambda bad=bad: w.add_noise(z, e, bad), 'one timestep')
        refused(lambda bad=bad: w.predict(z, bad, c), 'one timestep')
    refused(lambda: w.add_noise(z, e[:1], t), 'noise of its own')
    refused(lambda: w.add_noise((255*z).long(), e, t), 'int64')
    for bad in (c[:1], c[0]): refused(lambda bad=bad: w.predict(z, t, bad), 'text states')
    refused(lambda: w.predict(X, t, c), 'noised latents')

def test_timesteps_and_noise_of_every_function(w):
    z, t, c = w.encode(X), torch.tensor([10, 900]), w.encode_text(['a dog', 'a cat'])
    e = torch.randn(z.shape, generator=generator(0, 'e'))
    for bad in (torch.tensor([-1, 5]), torch.tensor([5, 1000]), torch.tensor([5., 6.]), torch.tensor([True, False])):
        for f in (lambda: w.add_noise(z, e, bad), lambda: w.target(z, e, bad), lambda: w.predict(z, bad, c)): refused(f, 'from 0 to 999')
    for f in (w.add_noise, w.target):
        refused(lambda f=f: f(z, e[:1], t), 'noise of its own')
        refused(lambda f=f: f(z, e.tolist(), t), 'list')
        refused(lambda f=f: f(z, e.long(), t), 'int64')
        for a, b in ((z*torch.nan, e), (z, e/0)): refused(lambda f=f, a=a, b=b: f(a, b, t), 'NaN or infinite')
    for bad in (None, c.tolist(), c.long()): refused(lambda bad=bad: w.predict(z, t, bad), 'text states')

@pytest.mark.parametrize('n', [0, -1, 1.5, True, None, '2'])
def test_a_batch_is_a_whole_number(w, n):
    z = w.encode(X)
    for f in (lambda: w.encode(X, batch=n), lambda: w.decode(z, batch=n), lambda: w.encode_text(['a dog'], batch=n)): refused(f, 'A batch of')
    refused(lambda: generate(w, ['a dog'], [1], batch=n), 'A batch of')

def test_guidance_is_a_finite_number(w):
    for bad in (float('nan'), float('inf'), -1, True, '4', [4]): refused(lambda bad=bad: generate(w, ['a dog'], [1], steps=2, guidance=bad), 'A guidance of')
    assert all(generate(w, ['a dog'], [1], steps=2, guidance=g).shape == (1, 3, 64, 64) for g in (0, 1))
    for bad in (2.5, '2', True): refused(lambda bad=bad: generate(w, ['a dog'], [1], steps=bad), 'sampling steps')

# ---------------------------------------------------------------- devices
def test_devices_and_types_that_are_none(w, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for bad in ('tpu', 'gpu', 'cuda', 'cuda:1', 'meta', '', 3.5):
        if bad:
            refused(lambda bad=bad: w.to(bad), str(bad), 'device=cpu')
            refused(lambda bad=bad: load_world('mini', bad), str(bad), 'device=cpu')
            monkeypatch.setenv('OWF_DEVICE', str(bad))
            refused(default_device, 'OWF_DEVICE', str(bad), 'OWF_DEVICE=cpu')
    monkeypatch.setenv('OWF_DEVICE', 'cpu')
    assert default_device() == 'cpu'
    for bad in ('float16', 'fp16', torch.int64, float):
        refused(lambda bad=bad: w.to('cpu', bad), 'torch.float32')
        refused(lambda bad=bad: load_world('mini', 'cpu', bad), 'torch.float32')

def test_what_people_train_is_stored_in_single_precision(tmp_path):
    """The shipped text encoder: stored in float16, plain transformers would load it so, and a training of it would end in NaN. Its values are
    those of half precision, so the world is the same as if they were stored so."""
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextModel
    folder = root()/'weights/mini'
    stored = load_file(folder/'text_encoder/model.safetensors')
    assert all(v.dtype == torch.float32 and torch.equal(v.half().float(), v) for v in stored.values())
    assert read_json(folder/'text_encoder/config.json')['dtype'] == 'float32'
    assert CLIPTextModel.from_pretrained(folder, subfolder='text_encoder').dtype == torch.float32
    shutil.copytree(folder, tmp_path/'mini')
    save_file({k: v.half() for k, v in stored.items()}, tmp_path/'mini/text_encoder/model.safetensors', metadata={'format': 'pt'})
    write_json(tmp_path/'mini/text_encoder/config.json', {**read_json(folder/'text_encoder/config.json'), 'dtype': 'float16'})
    half, world = load_world(spec_of('mini').but(source=str(tmp_path/'mini')), 'cpu'), load_world('mini', 'cpu')
    assert half.key == world.key and half.text_encoder.dtype == torch.float32

def test_a_world_prints_in_one_line(w): assert repr(w) == "World('tiny', 'base', 64 px, epsilon)"

# ---------------------------------------------------------------- prompts and seeds
def test_prompts_are_texts(w):
    for bad in ([None], [5], [b'a dog'], ['a dog', None], [['a dog']]): refused(lambda bad=bad: w.encode_text(bad), 'not text')
    for bad in (None, 5): refused(lambda bad=bad: w.tokens(bad), 'not text')
    assert w.tokens([]).shape == (0, 77) and w.encode_text([]).shape == (0, 77, 32) and w.encode_text('a dog').shape == (1, 77, 32)

def test_seeds_are_whole_numbers(w):
    import numpy as np
    a = generate(w, ['a dog', 'a cat'], [3, -4], steps=2)
    assert torch.equal(a, generate(w, ['a dog', 'a cat'], [np.int64(3), torch.tensor(-4)], steps=2)) and not torch.equal(a[:1], a[1:])
    for bad in ([.5, 1], ['1', 2], [None, 1]): refused(lambda bad=bad: generate(w, ['a dog', 'a cat'], bad, steps=2), 'whole number')
    refused(lambda: generate(w, 'dog', [1, 2, 3], steps=2), 'one prompt per image')
    for bad in (0, -1): refused(lambda bad=bad: generate(w, ['a dog'], [1], steps=bad), 'sampling steps')

# ---------------------------------------------------------------- where weights are looked for
def mine(source, **more): return {'name': 'mine', 'source': str(source), **more}

def test_a_folder_in_diffusers_layout_from_everywhere(saved, tmp_path, monkeypatch):
    "Absolute, relative to the project, from the home folder; a link too."
    key = load_world(mine(saved), 'cpu').key
    monkeypatch.setenv('HOME', str(saved.parent))
    monkeypatch.setenv('OWF_HOME', str(saved.parent))
    (saved.parent/'link').symlink_to(saved)
    assert all(load_world(mine(s), 'cpu').key == key for s in ('~/sd', 'sd', './sd', 'link', f'{saved}/'))

@pytest.mark.parametrize('suffix', ['pt', 'ckpt', 'GGUF'])
def test_a_single_file_that_is_not_read_is_refused_with_the_remedy(tmp_path, suffix):
    f = tmp_path/f'model.{suffix}'
    refused(lambda: load_world(mine(f)), 'does not exist', 'single file')
    f.write_bytes(b'x')
    says = refused(lambda: load_world(mine(f)), 'from_single_file', 'save_pretrained', 'source: folder')
    assert 'git checkout' not in says and 'does not exist' not in says

def test_a_hub_id_needs_its_revision():
    for more in ({}, {'revision': 'main'}):
        says = refused(lambda more=more: load_world(mine('someone/some-sd15', like='sd15', **more)), 'someone/some-sd15', 'give its revision')
        assert 'git checkout' not in says

def test_a_folder_that_does_not_exist(tmp_path, saved, monkeypatch):
    "Near names are said; `git checkout weights` is for the project's own weights alone."
    says = refused(lambda: load_world(mine(saved.parent/'ssd')), 'does not exist', f'Did you mean {saved}')
    assert 'git checkout' not in says
    refused(lambda: load_world(mine(tmp_path/'a/b/c')), 'does not exist either')
    assert 'git checkout' not in refused(lambda: load_world(mine('weights/minni')), 'does not exist', 'weights/mini')
    assert is_own('weights/mini/unet') and not is_own('weights') and not is_own('weights/my-sd')
    refused(lambda: load_world(mine('')), 'no source')
    (tmp_path/'here/sd/unet').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_world(mine('here/sd')), 'relative to the project', str(tmp_path/'here/sd'))

@pytest.mark.parametrize('gone, says', [
    ('unet', 'unet/'), ('tokenizer', 'tokenizer/'), *[(f, f) for f in (
        'scheduler/scheduler_config.json', 'vae/config.json', 'text_encoder/model.safetensors', 'unet/diffusion_pytorch_model.safetensors')]])
def test_missing_parts_are_named(saved, tmp_path, gone, says):
    shutil.copytree(saved, tmp_path/'sd')
    f = tmp_path/'sd'/gone
    shutil.rmtree(f) if f.is_dir() else f.unlink()
    assert 'git checkout' not in refused(lambda: load_world(mine(tmp_path/'sd'), 'cpu'), says, 'lacks')

def test_other_files_than_those_that_are_read_are_named(saved, tmp_path):
    "Two variants of which none is the usual one, or only pickles."
    shutil.copytree(saved, tmp_path/'sd')
    for part, ending in (('unet', 'a.safetensors'), ('vae', 'bin')):
        f = tmp_path/'sd'/part/'diffusion_pytorch_model.safetensors'
        f.rename(f.with_name(f'diffusion_pytorch_model.{ending}'))
    shutil.copy(tmp_path/'sd/unet/diffusion_pytorch_model.a.safetensors', tmp_path/'sd/unet/diffusion_pytorch_model.b.safetensors')
    refused(lambda: load_world(mine(tmp_path/'sd'), 'cpu'), 'there is diffusion_pytorch_model.a.safetensors', 'there is diffusion_pytorch_model.bin')

@pytest.mark.parametrize('name', ['scheduler/scheduler_config.json', 'unet/config.json', 'tokenizer/tokenizer.json', 'vae/diffusion_pytorch_model.safetensors'])
def test_damaged_parts_are_named(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path/'sd')
    if not (tmp_path/'sd'/name).exists(): pytest.skip('this tokenizer is stored otherwise')
    (tmp_path/'sd'/name).write_text('{')
    assert 'git checkout' not in refused(lambda: load_world(mine(tmp_path/'sd'), 'cpu'), name.split('/')[0], 'could not be loaded')

@pytest.mark.parametrize('bad, says', [([], 'a name or a mapping'), (5, 'a name or a mapping'), (None, 'a name or a mapping'), ({'name': 'x'}, 'source'),
                                       ({'name': 'x', 'source': 5}, 'source'), ('sd51', 'sd15')])
def test_definitions_that_are_none(bad, says): refused(lambda: spec_of(bad), says)

def test_a_data_module_that_is_none():
    for bad in ('no.such.module', '', 'openworld_forget.'): refused(lambda bad=bad: provider(spec_of('mini').but(data=bad)), 'cannot be imported')

def test_a_data_module_by_its_older_name():
    "A study file from before the wings still finds its folders, under the name that keys and steps use today."
    from openworld_forget.source import source_key
    from openworld_forget.worlds import folders
    spec = spec_of(mine('x', data='openworld_forget.concepts'))
    assert provider(spec) is folders and spec.data == 'openworld_forget.worlds.folders' == spec.but(token='zwx').data
    assert source_key(spec.data) == source_key('openworld_forget.worlds.folders')

# ---------------------------------------------------------------- data sources
SOURCES = ('openworld_forget.worlds.folders', 'openworld_forget.mini.data')

@pytest.mark.parametrize('name', SOURCES)
def test_a_data_source_takes_what_the_protocol_says(name):
    "Every function of `DataSource`, and those of `MoreData` that are offered, with the same arguments in the same order."
    module = importlib.import_module(name)
    assert not missing_members(module) and data_source(spec_of('mini').but(data=name)) is module
    for k, f in {**vars(DataSource), **vars(MoreData)}.items():
        if k.startswith('_') or not callable(f) or not hasattr(module, k): continue
        want, have = list(inspect.signature(f).parameters)[1:], inspect.signature(getattr(module, k)).parameters
        more = list(have.values())[len(want):]
        assert list(have)[:len(want)] == want and all(p.default is not p.empty for p in more), k

def test_a_data_source_that_lacks_a_function_is_named(tmp_path, monkeypatch):
    (tmp_path/'half_a_source.py').write_text('def splits(): return []\nbenchmarks = 5\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = mine('x', data='half_a_source')
    says = refused(lambda: data_source(spec), 'half_a_source', 'lacks benchmarks, benchmark, subjects', 'DataSource')
    assert 'splits' not in says.split('lacks')[1].split('.')[0]
    refused(lambda: check_data(spec), 'lacks benchmarks')
    refused(lambda: world_data(spec_of(spec)), 'lacks benchmarks')

def test_a_world_knows_its_data(w): assert data_source(w).__name__ == 'openworld_forget.worlds.folders' == data_source('sd15').__name__

def test_what_the_data_of_the_mini_world_depend_on():
    assert importlib.import_module('openworld_forget.mini.data').files() == [root()/'package-lock.json']

# ---------------------------------------------------------------- the hub, out of reach and in the cache
@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    return tmp_path/'hub'

def within(seconds, f, *says):
    t = time.monotonic()
    out = refused(f, *says)
    assert time.monotonic() - t < seconds
    return out

def test_offline_says_what_to_get(no_cache, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    within(60, lambda: load_world('sd15'), SD, PIN, '4.3 GB', 'HF_HUB_OFFLINE', str(no_cache), 'hf download', 'folder')
    within(60, lambda: clip_judge('openai/clip-vit-base-patch32', '3d74acf'), 'openai/clip-vit-base-patch32', 'hf download', 'Judge')
    within(60, lambda: dino_judge(), 'facebook/dino-vits16', 'hf download')
    within(60, lambda: check_judges(spec_of('sd15')), 'openai/clip-vit-base-patch32')

def test_a_hub_out_of_reach_is_one_error_within_seconds(no_cache, monkeypatch):
    "Not offline by decision: a connection that is refused at once."
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    url = huggingface_hub.hf_hub_url(SD, 'model_index.json', revision=PIN, endpoint='http://127.0.0.1:9')
    monkeypatch.setattr(load.huggingface_hub, 'hf_hub_url', lambda *a, **k: url)
    within(60, lambda: load_world('sd15'), SD, PIN, '4.3 GB', 'cannot be reached', str(no_cache), 'hf download')
    within(60, lambda: feature_judge('facebook/dino-vits16'), 'facebook/dino-vits16', 'cannot be reached')

def test_a_hub_that_never_answers(no_cache, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(load, 'HUB_SECONDS', .1)
    monkeypatch.setattr(load.huggingface_hub, 'get_hf_file_metadata', lambda *a, **k: time.sleep(3))
    refused(lambda: load_world('sd15'), 'cannot be reached', 'no answer in 0.1 s')

@pytest.mark.parametrize('error, says', [
    ('GatedRepoError', 'hf auth login'), ('RevisionNotFoundError', 'has no revision'), ('RepositoryNotFoundError', 'the hub has no'),
    ('EntryNotFoundError', 'holds no')])
def test_what_the_hub_answers_is_the_reason(no_cache, monkeypatch, error, says):
    kind = getattr(huggingface_hub.errors, error)
    def answer(*a, **k): raise kind.__new__(kind)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(load.huggingface_hub, 'get_hf_file_metadata', answer)
    refused(lambda: load_world(mine('someone/some-sd15', revision=PIN)), 'someone/some-sd15', says)

def cache(hub, source, revision, folder):
    "Put a folder where the hub's library keeps a snapshot."
    d = hub/f'models--{source.replace("/", "--")}'
    shutil.copytree(folder, d/'snapshots'/revision)
    (d/'refs').mkdir()
    (d/'refs/main').write_text(revision)
    return d/'snapshots'/revision

def test_what_is_in_the_cache_is_loaded_without_asking(no_cache, saved, monkeypatch):
    "Also when the network would be allowed; a snapshot that lacks parts says which."
    d = cache(no_cache, 'someone/some-sd15', PIN, saved)
    def never(*a, **k): raise AssertionError('the hub was asked')
    monkeypatch.setattr(load.huggingface_hub, 'get_hf_file_metadata', never)
    spec = mine('someone/some-sd15', revision=PIN)
    for offline in (True, False):
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
        assert load_world(spec, 'cpu').key == load_world(mine(saved), 'cpu').key
    shutil.rmtree(d/'vae')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    refused(lambda: load_world(spec, 'cpu'), 'the cache lacks vae/', PIN)

def test_a_judge_in_the_cache_carries_its_commit(no_cache, tmp_path):
    from transformers import ViTConfig, ViTModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8),
                 add_pooling_layer=False).save_pretrained(tmp_path/'dino')
    cache(no_cache, 'someone/some-dino', PIN, tmp_path/'dino')
    assert feature_judge('someone/some-dino').name == f'someone/some-dino@{PIN[:7]}' == feature_judge(f'someone/some-dino@{PIN}').name
    assert feature_judge(str(tmp_path/'dino')).name.startswith('dino@')
    (tmp_path/'dino/model.safetensors').unlink()
    assert 'git checkout' not in refused(lambda: feature_judge(str(tmp_path/'dino')), 'lacks model.safetensors')

def test_what_can_be_known_of_the_shipped_world_without_loading_it():
    assert find_source('weights/mini', None, 'World mini').name == 'mini' and not missing_parts(root()/'weights/mini')
    check_judges(spec_of('mini'))
    refused(lambda: check_judges(spec_of('mini').but(features='efficientnet-lite1')), 'efficientnet-lite0')
    refused(lambda: check_judges(spec_of('mini').but(clip='weights/mini-clipp')), 'Did you mean')


# ---------------------------------------------------------------- folders whose files say too little, or what would be left out
def told(saved, folder, part, name='config.json', drop=(), **more):
    "A copy of a world in which a part says something else."
    shutil.copytree(saved, folder)
    c = {**read_json(folder/part/name), **more}
    write_json(folder/part/name, {k: v for k, v in c.items() if k not in drop})
    return mine(folder)

SCHEDULES = {
    'another class': (dict(_class_name='FlowMatchEulerDiscreteScheduler'), (), 'FlowMatchEulerDiscrete'),
    'EDM': (dict(_class_name='EDMEulerScheduler'), (), 'EDM'),
    'LCM': (dict(_class_name='LCMScheduler'), (), 'LCM'), 'no class': ({}, ('_class_name',), '_class_name'),
    'no betas': ({}, ('beta_start', 'beta_end', 'beta_schedule'), 'lacks beta_start, beta_end, beta_schedule'),
    'no schedule': (dict(beta_schedule=None), (), 'lacks beta_schedule'),
    'ten betas': (dict(trained_betas=[.1]*10), (), '10 entries'), 'no timesteps': (dict(num_train_timesteps=0), (), 'num_train_timesteps is 0'),
    'half a timestep': (dict(num_train_timesteps=99.5), (), '99.5'), 'a beta of 2': (dict(beta_end=2), (), 'beta_end is 2'),
    'a beta in words': (dict(beta_start='small'), (), 'small'), 'sample': (dict(prediction_type='sample'), (), "'sample'")}
@pytest.mark.parametrize('name', SCHEDULES)
def test_a_schedule_is_never_invented(saved, tmp_path, name):
    more, drop, says = SCHEDULES[name]
    refused(lambda: load_world(told(saved, tmp_path/'w', 'scheduler', 'scheduler_config.json', drop, **more), 'cpu'), 'scheduler_config.json', says)

def test_an_empty_schedule_is_refused_and_that_of_sd15_is_read(saved, tmp_path):
    spec = told(saved, tmp_path/'w', 'scheduler', 'scheduler_config.json')
    f = tmp_path/'w/scheduler/scheduler_config.json'
    write_json(f, {})
    refused(lambda: load_world(spec, 'cpu'), 'scheduler class')
    write_json(f, dict(_class_name='PNDMScheduler', _diffusers_version='0.6.0', beta_end=.012, beta_schedule='scaled_linear', beta_start=.00085,
                       clip_sample=False, num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None))
    assert torch.allclose(load_world(spec, 'cpu').scheduler.alphas_cumprod, tiny_world().scheduler.alphas_cumprod)

@pytest.mark.parametrize('part, field, value', [
    ('vae', 'shift_factor', .1), ('vae', 'scaling_factor', None), ('vae', 'scaling_factor', 0), ('vae', 'latents_mean', [.1]*4), ('unet', 'sample_size', None),
    ('unet', 'sample_size', [8, 8]), ('unet', 'sample_size', 0)])
def test_what_a_part_says_is_not_ignored(saved, tmp_path, part, field, value):
    refused(lambda: load_world(told(saved, tmp_path/'w', part, **{field: value}), 'cpu'), f'{part}/config.json', field)

def test_a_tokenizer_that_does_not_know_the_length_of_its_network(saved, tmp_path):
    for i, kw in enumerate((dict(drop=('model_max_length',)), dict(model_max_length=512))):
        v = load_world(told(saved, tmp_path/str(i), 'tokenizer', 'tokenizer_config.json', **kw), 'cpu')
        assert v.context == 77 and v.encode_text(['a dog']).shape == (1, 77, 32)
        refused(lambda v=v: v.tokens(['x'*100]), 'reads 77')

def test_a_linked_folder_is_part_of_a_key(tmp_path):
    "Content behind links counts; a link that leads round in a circle does not hang; without links the key is that of the files."
    (tmp_path/'far').mkdir()
    (tmp_path/'a/b').mkdir(parents=True)
    for f in ('far/1', 'a/2', 'a/b/3', 'a/b.txt'): (tmp_path/f).write_text(f)
    plain = content_key(tmp_path/'a')
    assert plain == '8054ecd59294e8db'
    (tmp_path/'a/link').symlink_to(tmp_path/'far')
    linked = content_key(tmp_path/'a')
    (tmp_path/'far/1').write_text('other')
    assert len({plain, linked, content_key(tmp_path/'a')}) == 3
    (tmp_path/'a/link').unlink()
    (tmp_path/'a/b/round').symlink_to(tmp_path/'a')
    assert content_key(tmp_path/'a') == plain
