"""Subjects as people have them (the layouts of CustomConcept101 and DreamBooth, folders of photographs) and what a real world is asked besides:
read where they lie, one clear message for every fault. All pictures and set files are made here."""
import io, json, re, shutil

import numpy as np, pytest, torch
from PIL import Image, ImageEnhance, ImageOps

from openworld_forget.core import ForgetError, content_key, rng
from openworld_forget.study.files import read_study
from openworld_forget.study.plan import plan
from openworld_forget.study.run import Run
from openworld_forget.training.regularize import correction_terms
from openworld_forget.worlds import captions, folders
from openworld_forget.worlds.data import captions_for, subject_for, templates_for
from openworld_forget.worlds.pictures import load_image, lookalikes
from openworld_forget.worlds.subject_sets import listed, read_templates
from openworld_forget.worlds.subjects import command
from openworld_forget.worlds.tiny import tiny_subject, tiny_world
from openworld_forget.worlds.world import WORLDS, spec_of
import openworld_forget.mini.data as mini

def refused(f, *says):
    with pytest.raises(ForgetError) as e: f()
    text = str(e.value)
    for s in says: assert s in text, (s, text)
    assert 'Traceback' not in text and len(text) < 700
    return text

def picture(*key, size=(90, 70)):
    "A smooth picture of noise."
    return Image.fromarray(np.uint8(rng(0, 'subject', *key).integers(0, 255, (6, 8, 3)))).resize(size, Image.BICUBIC)

def photos(folder, n=3, size=(90, 70)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): picture(folder.name, i, size=size).save(folder/f'{i:02d}.jpg', quality=95)
    return folder

def custom(d, names=('pet_cat1', 'things_cup1'), words=('cat', 'cup')):
    "CustomConcept101: dataset.json, prompts/ and benchmark_dataset/."
    d.mkdir(parents=True)
    entries = []
    for name, word in zip(names, words):
        photos(d/'benchmark_dataset'/name)
        (d/'prompts').mkdir(exist_ok=True)
        (d/f'prompts/{word}.txt').write_text(f'Photo of a {{}}.\n{{}} near a caf\u00e9 as {word}. \n', encoding='utf-8')
        entries.append(dict(instance_prompt=f'photo of a <new1> {word}', class_prompt=word, instance_data_dir=f'./benchmark_dataset/{name}',
                            class_data_dir=f'./regularization/{name}', prompt_filename=f'prompts/{word}.txt'))
    (d/'dataset.json').write_text(json.dumps(entries, indent=4))
    return d

def line(text): return f"'a {{0}} {{1}} {text}'.format(unique_token, class_token)"

def dreambooth(d, subjects=(('dog2', 'dog'), ('rc_car', 'toy'), ('bear_plushie', 'stuffed animal'))):
    "The DreamBooth set: dataset/<subject>/NN.jpg and prompts_and_classes.txt, also with the lines of Windows."
    for name, _ in subjects: photos(d/name, 4)
    (d/'references_and_licenses.txt').write_text('x')
    rows = ['Classes', '', 'subject_name,class', *(f'{n},{w}' for n, w in subjects), '', 'Prompts', '', 'Object Prompts', '', 'prompt_list = [',
            line('in the snow') + ',', "'a red {0} {1}'.format(unique_token, class_token)", ']', '', 'Live Subject Prompts', '', 'prompt_list = [',
            line('in a hat'), ']', '']
    (d/'prompts_and_classes.txt').write_bytes('\r\n'.join(rows).encode())
    return d

def own(d, name='my-mug', word='mug', n=3, **kw):
    f = photos(d/name, n, **kw)
    if word is not None: (f/'class.txt').write_text(word)
    return f

@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'outputs'))
    (tmp_path/'data/subjects').mkdir(parents=True)
    return tmp_path/'data'

# ---------------------------------------------------------------- the three layouts, where they lie
PLACES = {          # where a set lies in the folder of subjects: as it, in it, as the whole download
    'CustomConcept101 is the folder':    (custom, '.', ['pet_cat1', 'things_cup1']),
    'CustomConcept101 in it':            (custom, 'customconcept101', ['pet_cat1', 'things_cup1']),
    'its repository in it':              (custom, 'custom-diffusion/customconcept101', ['pet_cat1', 'things_cup1']),
    'DreamBooth is the folder':          (dreambooth, '.', ['bear_plushie', 'dog2', 'rc_car']),
    'DreamBooth in it':                  (dreambooth, 'dataset', ['bear_plushie', 'dog2', 'rc_car']),
    'its repository in it, too':         (dreambooth, 'dreambooth/dataset', ['bear_plushie', 'dog2', 'rc_car']),
}

@pytest.mark.parametrize('name', PLACES)
def test_a_set_is_read_where_it_lies(data, name):
    make, place, names = PLACES[name]
    shutil.rmtree(data/'subjects')
    make(data/'subjects'/place)
    assert folders.subjects() == names
    if make is custom:
        s = folders.subject('pet_cat1', 16)
        assert (s.class_word, s.images.shape, s.instance_prompt) == ('cat', (3, 3, 16, 16), 'a photo of a sks cat')
        assert folders.subject_templates('pet_cat1') == ['Photo of a {}.', '{} near a caf\u00e9 as cat.']
    else:
        assert folders.subject('bear_plushie', 16).class_prompt == 'a photo of a stuffed animal'
        assert folders.subject_templates('rc_car') == ['a {} in the snow', 'a red {}'] and folders.subject_templates('dog2') == ['a {} in a hat']

def test_sets_and_folders_of_ones_own_lie_side_by_side(data, capsys):
    custom(data/'subjects/customconcept101')
    dreambooth(data/'subjects/dataset')
    f = own(data/'subjects')
    assert folders.subjects() == ['bear_plushie', 'dog2', 'my-mug', 'pet_cat1', 'rc_car', 'things_cup1']
    assert folders.subject_templates('my-mug') == [] and templates_for(folders, 'my-mug') == folders.eval_templates()
    (f/'prompts.txt').write_text('{} in my kitchen\n')
    assert templates_for(folders, 'my-mug') == ['{} in my kitchen']
    folders.subject('my-mug', 16)
    assert 'prompts.txt' not in capsys.readouterr().out                    # it belongs to the subject: nothing was left out

def test_photographs_that_were_unpacked_above_and_behind_a_link(data, tmp_path):
    c = custom(tmp_path/'elsewhere/custom-diffusion/customconcept101')
    (c/'benchmark_dataset').rename(c.parent/'benchmark_dataset')
    (data/'subjects/cc').symlink_to(c)
    assert folders.subjects() == ['pet_cat1', 'things_cup1'] and len(folders.subject('pet_cat1', 16).images) == 3
    assert [s.name for s in listed(c.parent)] == ['pet_cat1', 'things_cup1']

def test_part_of_a_set_and_a_folder_that_it_does_not_list(data, capsys):
    d = custom(data/'subjects/customconcept101')
    shutil.rmtree(d/'benchmark_dataset/pet_cat1')
    photos(d/'benchmark_dataset/stranger')
    own(d/'benchmark_dataset', 'mine')
    assert folders.subjects() == ['mine', 'things_cup1']
    out = capsys.readouterr().out
    assert 'of 2 subjects, 1 have no photographs here: pet_cat1' in out and 'stranger left out' in out

def test_the_order_of_photographs_is_that_of_their_names(data):
    f = own(data/'subjects', n=0)
    for i in (2, 0, 1): picture(i).save(f/f'{i}.png')
    images = folders.subject('my-mug', 16).images
    assert torch.equal(images, torch.stack([load_image(f/f'{i}.png', 16) for i in range(3)]))

# ---------------------------------------------------------------- what is wrong with a set, one message each
def edit(file, old, new):
    text = file.read_bytes().decode()
    assert old in text
    file.write_bytes(text.replace(old, new).encode())

JSON = {
    'no JSON':          ('[', '', ['dataset.json', 'not valid JSON', 'CustomConcept101']),
    'no list':          (None, '{"a": 1}', ['is no list of concepts']),
    'nothing':          (None, '[]', ['is no list of concepts']),
    'of several':       (None, '[[{"class_prompt": "cat"}]]', ['combinations', 'dataset_multiconcept']),
    'no class':         ('class_prompt', 'klass_prompt', ['concept 1 of 2', "'class_prompt'"]),
    'a number':         ('"cat"', '5', ['concept 1 of 2', "'class_prompt'"]),
    'twice':            ('things_cup1', 'pet_cat1', ["'pet_cat1'", 'twice']),
    'not unpacked':     ('benchmark_dataset', 'elsewhere', ['photographs of none are there']),
}

@pytest.mark.parametrize('name', JSON)
def test_a_damaged_list_of_concepts(data, name):
    old, new, says = JSON[name]
    d = custom(data/'subjects/cc')
    if old is None: (d/'dataset.json').write_text(new)
    else: edit(d/'dataset.json', old, new)
    if name == 'not unpacked': shutil.rmtree(d/'benchmark_dataset')
    refused(folders.subjects, str(d/'dataset.json'), *says)

TEXT = {
    'no table':         ('subject_name,class', 'name', ["no line 'subject_name,class'"]),
    'no comma':         ('rc_car,toy', 'rc_car toy', ['line 5', "'rc_car toy'"]),
    'a comma more':     ('rc_car,toy', 'rc_car,toy,car', ['line 5']),
    'twice':            ('rc_car,', 'dog2,', ['line 5', 'twice']),
    'no section':       ('Live Subject', 'Living Subject', ['live subject prompts']),
    'no end':           ("in a hat'.format(unique_token, class_token)\r\n]", "in a hat'.format(unique_token, class_token)", ['has no end']),
    'other code':       ("'a red {0} {1}'.format(unique_token, class_token)", "open('x')", ['is no prompt']),
    'without subject':  ('a red {0} {1}', 'a red thing', ['needs one {}']),
}

@pytest.mark.parametrize('name', TEXT)
def test_a_damaged_file_of_classes(data, name):
    old, new, says = TEXT[name]
    d = dreambooth(data/'subjects/dataset')
    edit(d/'prompts_and_classes.txt', old, new)
    refused(folders.subjects, str(d/'prompts_and_classes.txt'), *says)

def test_a_file_of_classes_that_is_no_utf8(data):
    d = dreambooth(data/'subjects/dataset')
    (d/'prompts_and_classes.txt').write_bytes('subject_name,class'.encode('utf-16'))
    refused(folders.subjects, 'prompts_and_classes.txt', 'UTF-8')

@pytest.mark.parametrize('text, says', [('', 'holds no prompts'), ('a dog', 'line 1'), ('{}\n{} and {}', 'line 2'), ('{name} {}', 'no other brace'),
                                        ('{}\n\n{}', 'line 1 already'), ('{} {0}', 'line 1')])
def test_a_file_of_prompts_that_cannot_be_used(tmp_path, text, says):
    (tmp_path/'prompts.txt').write_text(text)
    refused(lambda: read_templates(tmp_path/'prompts.txt'), 'prompts.txt', says)

def test_a_missing_file_of_prompts_is_refused_with_both_remedies(data):
    d = custom(data/'subjects/cc')
    shutil.rmtree(d/'prompts')
    folders.subject('pet_cat1', 16)
    refused(lambda: folders.check_subject('pet_cat1'), 'cat.txt is missing', 'as published', 'take prompt_filename', 'dataset.json')

def test_a_class_word_of_a_set_is_checked_like_any_other(data):
    d = custom(data/'subjects/cc')
    edit(d/'dataset.json', '"class_prompt": "cat"', '"class_prompt": "photo of a cat"')
    refused(lambda: folders.subject('pet_cat1', 16), 'pet_cat1', 'dataset.json', 'Write: cat')

def test_two_subjects_of_one_name_are_both_named(data):
    dreambooth(data/'subjects/dataset')
    f = own(data/'subjects', 'rc_car', 'car')
    refused(folders.subjects, str(f), str(data/'subjects/dataset/rc_car'), 'Rename')

# ---------------------------------------------------------------- photographs: square, upright, once
def test_a_photograph_is_cropped_or_padded_by_choice_and_the_choice_is_recorded(data):
    f = own(data/'subjects', n=3, size=(120, 60))
    assert WORLDS['sd15'].photos == WORLDS['mini'].photos == 'crop'
    crop = subject_for(folders, spec_of('sd15'), 'my-mug', 32)
    spec = spec_of(dict(name='mine', source='x', photos='pad'))
    pad = subject_for(folders, spec, 'my-mug', 32)
    assert torch.equal(crop.images, folders.subject('my-mug', 32).images) and crop.key != pad.key
    assert (pad.images[:, :, :7] == 255).all() and (pad.images[:, :, 25:] == 255).all() and (pad.images[:, :, 9:23] < 255).any()
    assert torch.equal(crop.images[0], load_image(f/'00.jpg', 32)) and torch.equal(pad.images[0], load_image(f/'00.jpg', 32, fit='pad'))
    assert content_key(spec) != content_key(spec.but(photos='crop'))
    refused(lambda: spec_of(dict(name='mine', source='x', photos='padd')), 'photos', 'padd', 'pad')

def test_a_very_long_photograph_can_be_padded(tmp_path):
    Image.new('RGB', (3000, 8), (255, 0, 0)).save(tmp_path/'x.png')
    x = load_image(tmp_path/'x.png', 16, fit='pad')
    assert x.shape == (3, 16, 16) and (x[1] < 255).any() and (x[:, :7] == 255).all()

def jpeg(im, quality):
    f = io.BytesIO()
    im.save(f, 'JPEG', quality=quality)
    return Image.open(f).convert('RGB')

COPIES = {
    'smaller':      lambda im: im.resize((45, 35), Image.LANCZOS),
    'mirrored':     ImageOps.mirror,
    'saved anew':   lambda im: jpeg(im, 40),
    'grey':         lambda im: im.convert('L'),
    'brighter':     lambda im: ImageEnhance.Brightness(im).enhance(1.05),
    'small mirror': lambda im: ImageOps.mirror(im).resize((45, 35), Image.LANCZOS),
}

@pytest.mark.parametrize('fit', ['crop', 'pad'])
@pytest.mark.parametrize('name', COPIES)
def test_a_copy_of_a_photograph_is_said_and_not_refused(data, capsys, name, fit):
    f = own(data/'subjects')
    folders.subject('my-mug', 32, fit=fit)
    assert 'copies' not in capsys.readouterr().out
    COPIES[name](picture('my-mug', 1)).save(f/'again.png')
    assert len(folders.subject('my-mug', 32, fit=fit).images) == 4
    out = capsys.readouterr().out
    assert '01.jpg and again.png' in out and 'copies of one photograph' in out and ('(mirrored)' in out) == ('mirror' in name)

def test_pictures_without_contrast_and_other_pictures_are_no_copies():
    flat = [torch.full((3, 32, 32), v, dtype=torch.uint8) for v in (9, 9, 10)]
    other = [torch.from_numpy(np.array(picture(i, size=(32, 32)))).permute(2, 0, 1) for i in range(8)]
    assert lookalikes(torch.stack(flat + other)) == []

# ---------------------------------------------------------------- owf subjects
def test_the_command_shows_good_subjects_and_ends_with_0(data, capsys):
    dreambooth(data/'subjects/dataset')
    own(data/'subjects')
    assert command([]) == 0
    out, html = capsys.readouterr().out, (data.parent/'outputs/subjects.html').read_text()
    rows = [x.split() for x in out.splitlines()]
    assert rows[0][:2] == ['subject', 'class'] and ['dog2', 'dog', '4', '90', 'x', '70', '1', 'of', 'its', 'own', 'see', 'below'] in rows
    assert '4 of 4 subjects can be used' in out and html.count('<img') == 3*4 + 3 and not re.search('src="(?!data:)|href=|<script', html)

def test_the_command_counts_what_cannot_be_used_and_ends_with_1(data, tmp_path, capsys):
    d = data/'subjects'
    own(d, 'few', n=2), own(d, 'nothing', n=0), own(d, 'My Dog'), own(d, 'wordless', word=None), own(d, 'good')
    (own(d, 'broken')/'00.jpg').write_bytes(b'\xff\xd8 no picture')
    f = own(d, 'twin')
    shutil.copy(f/'00.jpg', f/'copy.jpg')
    (own(d, 'asked')/'prompts.txt').write_text('a dog')
    (own(d, 'phone')/'1.heic').write_bytes(b'\0\0\0\x18ftypheic')
    assert command([str(data), '--html', str(tmp_path/'x.html')]) == 1
    said = [x for x in capsys.readouterr().out.splitlines() if 'cannot be used: ' in x]
    says = dict(few='holds 2 images', nothing='holds no images', wordless='class.txt is missing', broken='not a complete image', twin='same picture',
                asked="'a dog' needs one {}", phone='HEIC') | {'My Dog': "'my-dog'"}
    assert {x.split(' cannot be used')[0] for x in said} == set(says) and len(said) == len(says)
    for name, text in says.items(): assert any(x.startswith(name) and text in x for x in said), (name, said)
    html = (tmp_path/'x.html').read_text()
    assert html.count('class="fault"') == 8 and html.count('class="none"') == 1

def test_the_command_notes_what_is_odd(data, tmp_path, capsys):
    f = own(data/'subjects', n=4, size=(600, 560))
    picture('w', size=(1400, 600)).save(f/'wide.png')
    picture('g', size=(600, 600)).convert('L').save(f/'grey.png')
    picture('s', size=(80, 80)).save(f/'small.png')
    exif = Image.Exif()
    exif[274] = 6
    picture('t', size=(700, 560)).save(f/'turned.jpg', exif=exif)
    ImageOps.mirror(picture('my-mug', 0, size=(600, 560))).save(f/'mirror.png')
    (f/'00.npz').write_bytes(b'x')
    assert command([str(f), '--html', str(tmp_path/'x.html')]) == 0
    out = capsys.readouterr().out
    for x in ('00.jpg and mirror.png (mirrored)', 'small.png: smaller than 512', 'grey.png: not RGB (L)', 'turned.jpg: turned',
              'wide.png: the square leaves out 57%', '9 photographs', '00.npz'): assert x in out, x
    assert '560 x 700' not in out and '80 x 80 ... 1400 x 600' in out and 'turned.jpg, 560 x 700, turned' in (tmp_path/'x.html').read_text()
    assert command([str(f), '--html', str(tmp_path/'x.html'), '--photos', 'pad', '--size', '64']) == 0
    out = capsys.readouterr().out
    assert 'leaves out' not in out and 'smaller' not in out

def test_one_folder_of_photographs_with_a_given_class_word(data, tmp_path, capsys):
    f, page = own(tmp_path/'mine', word=None), ['--html', str(tmp_path/'x.html')]
    assert command([str(f), *page]) == 1 and command([str(f), '--class-word', 'mug', *page]) == 0 and 'class.txt' in capsys.readouterr().out
    assert command([str(f), '--class-word', 'a photo of a mug', *page]) == 1
    own(tmp_path/'mine', 'other')
    refused(lambda: command([str(tmp_path/'mine'), '--class-word', 'mug', *page]), "'mug'", 'one subject')

def test_a_page_shows_names_as_they_are_and_no_markup(data, tmp_path):
    f = own(data, '<b>bold', 'mug')
    (f/'prompts.txt').write_text('{} <script>')
    command([str(f), '--html', str(tmp_path/'x.html')])
    html = (tmp_path/'x.html').read_text()
    assert '&lt;b&gt;bold' in html and '<b>bold' not in html and '<script>' not in html

def test_folders_that_the_command_cannot_read(data, tmp_path):
    refused(lambda: command([str(tmp_path/'none')]), 'is no folder')
    refused(lambda: command([]), 'holds no subjects')
    f = own(data)
    (tmp_path/'file').write_text('x')
    refused(lambda: command([str(f), '--html', str(tmp_path/'file/x.html')]), 'cannot be written', '--html')

# ---------------------------------------------------------------- in a study
STUDY = 'name: mine\nworld: {name: mine, source: x, like: sd15}\nconcepts: [dog2]\nmethods: [db]\nbudget: smoke\n'

@pytest.fixture
def study(data):
    dreambooth(data/'subjects/dataset')
    for c in ('ant', 'bee'): photos(data/f'benchmarks/bugs/{c}', 4)
    (data.parent/'s.yaml').write_text(STUDY)
    return data.parent/'s.yaml'

def keys(file): return {s.name: s.key for s in plan(read_study(file))}

def test_steps_of_a_subject_are_keyed_by_its_photographs_and_its_set(study, data):
    was, d = keys(study), data/'subjects/dataset'
    edit(d/'prompts_and_classes.txt', 'in a hat', 'in a red hat')
    now = keys(study)
    assert {k for k in was if was[k] != now[k]} == {'customize', 'semantic', 'appearance', 'fidelity', 'summary'}
    picture('new').save(d/'rc_car/09.png')                          # another subject's
    assert keys(study) == now

def test_the_files_of_a_subject_are_its_photographs_and_what_its_set_says(data):
    d, c, f = dreambooth(data/'subjects/dataset'), custom(data/'subjects/cc'), own(data/'subjects')
    (f/'prompts.txt').write_text('{}')
    assert folders.files_of_subject(folders, 'dog2') == [d/'dog2', d/'prompts_and_classes.txt']
    assert folders.files_of_subject(folders, 'pet_cat1') == [c/'benchmark_dataset/pet_cat1', c/'dataset.json', c/'prompts/cat.txt']
    assert folders.files_of_subject(folders, 'my-mug') == folders.files_of_subject(object(), 'my-mug') == [f]
    assert folders.files_of_subject(object(), 'none') == []

def test_fidelity_asks_the_prompts_of_the_subjects_set(study):
    run = Run(str(study), concept='dog2', method='db').on(tiny_world())
    prompts, seeds = run.portraits()
    assert prompts == ['a sks dog in a hat'] and len(seeds) == run.limits.per_template
    assert run.portraits('rc_car')[0] == ['a sks toy in the snow', 'a red sks toy']

def test_a_prompt_of_a_set_that_says_the_token_is_refused(study, data):
    edit(data/'subjects/dataset/prompts_and_classes.txt', 'in a hat', 'with an sks hat')
    refused(lambda: read_study(study), "'sks'", 'sks hat')

def test_the_mini_world_is_asked_what_it_was_asked_before(data):
    own(data/'subjects', 'my-mug', 'mug')
    assert templates_for(mini, 'cat-noto') == mini.eval_templates() and len(mini.eval_templates()) == 20
    assert captions_for(mini, mini.subject('cat-noto'), 20, 3) == mini.generic_captions(20, 3)
    assert subject_for(mini, spec_of('mini'), 'cat-noto', 64).key == mini.subject('cat-noto').key
    (data/'subjects/my-mug/prompts.txt').write_text('{} near the Eiffel Tower')         # words that it has never read
    assert templates_for(mini, 'my-mug') == mini.eval_templates()
    assert mini.subject_files('my-mug') == [data/'subjects/my-mug'] and mini.subject_files('cat-noto') == []

# ---------------------------------------------------------------- captions
def test_what_is_measured_and_what_is_held_on_to_share_no_caption():
    measured, held = folders.unrelated_prompts(), folders.generic_captions(338)
    assert len(set(measured)) == len(measured) == 116 and len(set(held)) == 338 and not set(measured) & set(held)
    assert {captions.category_of(p) for p in measured} == {captions.category_of(p) for p in held} == set(captions.UNRELATED)

DREAMBOOTH = ('backpack', 'stuffed animal', 'bowl', 'can', 'candle', 'cat', 'clock', 'sneaker', 'dog', 'toy', 'boot', 'glasses', 'cartoon', 'teapot', 'vase')

@pytest.mark.parametrize('word', [*DREAMBOOTH, 'puppy', 'kitten', 'rucksack', 'sunglasses'])
def test_no_caption_and_no_prompt_speaks_of_a_dreambooth_subject(word):
    for texts in (folders.unrelated_prompts(), folders.color_prompts(), folders.generic_captions(338)):
        assert captions.leave_out(texts, word) == texts
        assert not [t for t in texts if re.search(rf'\b{word}s?\b', t)]

@pytest.mark.parametrize('word, gone, stays', [
    ('car', 'a sports car on a mountain road', 'a ferry leaving the harbor'), ('flower', 'tulips in rows', 'a willow beside a river'),
    ('guitar', 'an acoustic guitar on a bed', 'a trumpet on velvet'), ('person', 'a waiter carrying a tray', 'a ferry leaving the harbor'),
    ('wooden chair', 'an armchair under a tree', 'a wood carving of a fish'), ('Lighthouse', 'a lighthouse on a cliff', 'a castle on a rock')])
def test_captions_for_a_subject_are_without_its_class_and_what_is_near(word, gone, stays):
    every, some = folders.generic_captions(338), folders.captions_without(word, 250)
    assert gone in every and gone not in some and stays in captions.leave_out(every, word)
    assert len(set(some)) == 250 and captions.leave_out(some, word) == some

def test_the_correction_sees_no_caption_of_the_subjects_class():
    world, subject = tiny_world(), tiny_subject()
    n, without = 12, folders.captions_without(subject.class_word, 12, 5)
    assert correction_terms(world, subject, source='generic', n=n, seed=5)[0].captions == without

def test_a_draw_is_by_seed_and_balanced_over_categories():
    a = folders.generic_captions(130, 1)
    assert a == folders.generic_captions(130, 1) != folders.generic_captions(130, 2) and folders.generic_captions(20, 1) == a[:20]
    assert {a_: list(map(captions.category_of, a)).count(a_) for a_ in captions.UNRELATED} == dict.fromkeys(captions.UNRELATED, 10)
    assert folders.generic_captions(0) == [] and len(set(folders.generic_captions(400))) == 338

def test_a_budget_of_eleven_colours_asks_every_colour_on_several_objects():
    few = lambda ps, n: ps[::max(1, len(ps)//n)][:n]               # as Run.prompt_sets
    eleven = few(folders.color_prompts(), 11)
    assert [next(c for c in captions.COLORS if f' {c} ' in p) for p in eleven] == captions.COLORS and len({p.split()[-1] for p in eleven}) == 4
    assert 'a photo of an orange balloon' in folders.color_prompts() and not [p for p in folders.color_prompts() if 'a orange' in p]

def test_every_prompt_fits_a_small_world():
    w = tiny_world()
    for p in [*folders.unrelated_prompts(), *folders.color_prompts(), *folders.generic_captions(338)]: w.tokens([p])
