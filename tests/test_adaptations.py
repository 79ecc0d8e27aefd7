"""Adapters of OFT, LoHa, LoKr and textual inversion as plain peft and plain diffusers read them; what a world cannot adapt is one error."""
import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import inject_adapter_in_model, set_peft_model_state_dict

from openworld_forget.core import ForgetError, generator, load_tensors
from openworld_forget.training.adapt import Adaptation, adapt, export_adapted, freeze, load_own, peft_config, save_adapted
from openworld_forget.training.checkpoints import load_adapted
from openworld_forget.worlds.load import clone
from openworld_forget.worlds.tiny import tiny_world

@pytest.fixture(scope='module')
def base(): return tiny_world()

def trained(base, a, path):
    w, params = adapt(base, a, 'x'); g = generator(0, 'shake')
    with torch.no_grad():
        for p in params.values(): p.add_(.1*torch.randn(p.shape, generator=g))
    save_adapted(path, base, params, a, 'x'); return freeze(w)

@pytest.mark.parametrize('kind', ['oft', 'loha', 'lokr'])
def test_plain_peft_reads_the_file_as_it_is(base, tmp_path, kind):
    a = Adaptation(kind=kind, rank=2, alpha=3.); w = trained(base, a, tmp_path/'a.safetensors')
    plain = inject_adapter_in_model(peft_config(a), clone(base.unet))
    tensors = {k.removeprefix('unet.'): v for k, v in load_tensors(tmp_path/'a.safetensors')[0].items()}
    told = set_peft_model_state_dict(plain, tensors)
    assert not told.unexpected_keys and not [k for k in told.missing_keys if any(x in k for x in ('oft_', 'hada_', 'lokr_'))]
    z, t, c = torch.randn(1, *base.latent_shape, generator=generator(0, 'z')), torch.tensor([400]), base.encode_text(['a cat'])
    with torch.no_grad(): assert torch.equal(plain(z, t, c).sample, w.unet(z, t, c).sample)
    assert not torch.equal(w.predict(z, t, c), base.predict(z, t, c))

def test_plain_diffusers_reads_a_textual_inversion(base, tmp_path):
    w = trained(base, Adaptation(kind='ti'), tmp_path/'a.safetensors'); file, = export_adapted(tmp_path/'a.safetensors', tmp_path)
    parts = base.but(text_encoder=clone(base.text_encoder)).pipeline().components
    parts['tokenizer'] = copy.deepcopy(base.tokenizer)
    pipe = StableDiffusionPipeline(**parts); pipe.load_textual_inversion(str(tmp_path), weight_name=file.name)
    told = pipe.encode_prompt('a <x> cat', 'cpu', 1, False)[0]
    assert torch.equal(told, w.encode_text(['a x cat'])) and not torch.equal(told, base.encode_text(['a x cat']))
    again = load_adapted(base, file)                                        # and so does this package
    assert torch.equal(again.encode_text(['a <x> cat']), told)

@pytest.mark.parametrize('kind', ['oft', 'loha', 'lokr', 'svdiff', 'ti'])
def test_made_twice_it_is_the_same_to_the_bit_and_says_where_it_is_not_of_this_base(base, tmp_path, kind):
    a = Adaptation(kind=kind); one, two = (adapt(base, a, 'x')[1] for _ in 'ab')
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    trained(base, a, tmp_path/'a.safetensors')
    with pytest.raises(ForgetError, match='another base'): load_own(tiny_world(seed=1), tmp_path/'a.safetensors')
