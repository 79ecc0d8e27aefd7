"""The seven benchmarks as they are published: the right pixels, labels and names come out, unpacked and packed, or one `ForgetError` says which file is
wrong, why, and what to do. The archives are made by `archives.py`."""
import hashlib, json, os, pickle, tarfile, zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from archives import KINDS, LAYOUTS, NAMES, colour, make, make_all, pack, picture, save
from openworld_forget.core import ForgetError
from openworld_forget.study.plan import files_of
from openworld_forget.study.records import Study
from openworld_forget.worlds.archives import command, save_subset, subset_list
from openworld_forget.worlds.data import Benchmark
from openworld_forget.worlds.folders import benchmark, benchmark_content, benchmark_files, check_benchmarks, class_counts, images_in
from openworld_forget.worlds.layouts import FLOWERS, LAYOUTS as OURS, TEMPLATES
from openworld_forget.worlds.pictures import square

@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('OWF_CACHE', str(tmp_path/'cache'))
    return tmp_path/'data/benchmarks'

def called(kind): return kind.removesuffix('-py')
def made(data, kind, **how): return make(kind, data/called(kind), **how)
def one(pattern, root): return next(iter(sorted(root.glob(pattern))))

def refused(f, *says):
    with pytest.raises(ForgetError) as e: f()
    for s in says: assert s in str(e.value), str(e.value)
    return str(e.value)

# ---------------------------------------------------------------- what is right
@pytest.mark.parametrize('packed', [False, True], ids=['unpacked', 'packed'])
@pytest.mark.parametrize('kind', KINDS)
def test_an_official_layout_gives_the_right_pixels_labels_and_names(data, kind, packed):
    m = made(data, kind, packed=packed)
    b = benchmark(called(kind), 'test', 32)
    assert b.classes == m.classes and b.labels.tolist() == m.labels and len(set(b.names)) == len(b) == len(set(b.hashes))
    side = {'cifar10': (32, 32), 'stl10': (96, 96)}.get(called(kind), (60, 48))
    for x, k in zip(b.images, m.shown):
        want = square(Image.fromarray(picture(k, *side)), 32)
        off = (x.int() - want.int()).abs()
        assert off.float().mean() < 2 and off[..., [0, -1]].max() < 12 and off[:, [0, -1]].float().mean() < 5, (kind, k)
    assert b.prompts[0] == TEMPLATES[called(kind)].format(m.classes[0])

@pytest.mark.parametrize('kind', KINDS)
def test_unpacking_an_archive_changes_neither_the_images_nor_the_key_of_the_step(data, tmp_path, kind):
    made(data, kind)
    loose = images_in(data/called(kind), called(kind))
    make(kind, tmp_path/called(kind), packed=True)
    packed = images_in(tmp_path/called(kind), called(kind))
    which = loose.draw(1)
    assert packed.content(which) == loose.content(which) and [n.split('/')[-1] for n in packed.names] == [n.split('/')[-1] for n in loose.names]
    assert torch.equal(packed.load(which, 16), loose.load(which, 16))

@pytest.mark.parametrize('kind', KINDS)
def test_the_official_folder_may_be_the_benchmark_s_folder_itself_or_lie_in_another(data, tmp_path, kind):
    m, d = made(data, kind), data/called(kind)
    inside = next((p for p in d.iterdir() if p.is_dir() and p.name not in ('jpg', 'images', 'annotations')), d)
    inside.rename(tmp_path/'moved') if inside != d else d.rename(tmp_path/'moved')
    assert images_in(tmp_path/'moved', called(kind)).classes == m.classes
    (tmp_path/'in').mkdir()
    (tmp_path/'moved').rename(tmp_path/'in/some name')
    assert images_in(tmp_path/'in', called(kind)).classes == m.classes

def test_folders_that_are_links_are_followed_and_a_link_around_itself_is_not(data, tmp_path):
    m = made(data, 'pets')
    (data/'pets/images').rename(tmp_path/'elsewhere')
    (data/'pets/images').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'elsewhere/round').symlink_to(data/'pets')
    assert images_in(data/'pets', 'pets').classes == m.classes

def test_a_part_that_is_still_packed_is_read_beside_what_is_unpacked(data):
    m = made(data, 'pets', packed=True)
    with tarfile.open(data/'pets/annotations.tar.gz') as t: t.extractall(data/'pets', filter='data')
    (data/'pets/annotations.tar.gz').unlink()
    assert benchmark('pets', 'test', 16).classes == m.classes

def test_the_numbers_of_the_paper_are_drawn_where_none_are_given(data):
    made(data, 'pets', per_class=16, classes=2), made(data, 'food', per_class=7, classes=2)
    assert benchmark('pets', 'test', 8).labels.bincount().tolist() == [14, 14] and benchmark('food', 'test', 8).labels.bincount().tolist() == [5, 5]
    assert {k: x.per_class for k, x in OURS.items()} == dict(cifar10=50, stl10=50, flowers=5, pets=14, objectnet=5, food=5, aircraft=5)

def test_a_plan_is_told_how_many_images_of_each_class_are_drawn(data):
    made(data, 'pets', per_class=16, classes=2)
    assert class_counts('pets') == {'Abyssinian': 14, 'American Bulldog': 14} and set(class_counts('pets', 15).values()) == {15}
    assert set(class_counts('pets', 99).values()) == {16}

def test_a_draw_belongs_to_its_seed_and_a_longer_one_holds_the_shorter(data):
    made(data, 'food', per_class=12)
    few, more, other = benchmark('food', 'test', 8, 4), benchmark('food', 'test', 8, 8), benchmark('food', 'test', 8, 4, seed=1)
    assert set(few.names) < set(more.names) and few.names != other.names and benchmark('food', 'test', 8, 4).names == few.names

def test_the_names_of_the_102_flowers_are_102_different_ones_in_the_order_of_the_labels():
    assert len(set(FLOWERS)) == 102
    told = {1: 'pink primrose', 13: 'king protea', 37: 'Cape flower', 51: 'petunia', 74: 'rose', 89: 'watercress', 102: 'blackberry lily'}
    assert {k: FLOWERS[k - 1] for k in told} == told

# ---------------------------------------------------------------- pictures that are not plain RGB
OTHERS = {                                      # the files of test images, written anew -> what is shown then, by its colour
    'grey': ('L', lambda c: np.full(3, round(float(c @ [.299, .587, .114])))), 'palette': ('P', lambda c: c), 'CMYK': ('CMYK', lambda c: c),
    'RGBA': ('RGBA', lambda c: c), '16 bits': ('I;16', lambda c: np.full(3, 100)),
}
@pytest.mark.parametrize('kind', LAYOUTS[2:])
@pytest.mark.parametrize('mode', OTHERS)
def test_an_image_that_is_no_plain_rgb_is_read_rightly_in_each_archive(data, kind, mode):
    m = made(data, kind)
    t = images_in(data/kind, kind)
    mode, show = OTHERS[mode]
    a, c = np.array(Image.open(t.members[0].home)), colour(m.shown[0])
    a[:] = c
    im = Image.fromarray(np.full(a.shape[:2], 100*257, np.uint16)) if mode == 'I;16' else Image.fromarray(a).convert(mode)
    im.save(t.members[0].home, {'CMYK': 'TIFF', 'L': 'JPEG'}.get(mode, 'PNG'))                  # whatever the file is called
    x = images_in(data/kind, kind).load([0], 16)[0].float().mean((1, 2)).numpy()
    assert np.abs(x - show(c)).max() <= 3, (x, show(c))

# ---------------------------------------------------------------- what is wrong: (file, what is done to it, what the error says)
def lines(path, use): path.write_text('\n'.join(use(path.read_text().splitlines())) + '\n')
def gone(path): path.unlink()
def cut(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes())*2//3 - 5])
def more(word): return lambda path: lines(path, lambda x: [*[y for y in x if y], word])
def table(use): return lambda path: path.write_text(json.dumps(use(json.loads(path.read_text()))))
def without(start): return lambda path: lines(path, lambda x: [y for y in x if not y.startswith(start)])
def first(word): return lambda path: lines(path, lambda x: [word, *x[1:]])
def bytes_of(use):
    def f(path):
        a = np.fromfile(path, np.uint8)
        use(a)
        a.tofile(path)
    return f
def same_row(size, skip): return bytes_of(lambda a: a.reshape(-1, size)[1].__setitem__(slice(skip, None), a.reshape(-1, size)[0][skip:]))
def mat(key, use): return lambda path: savemat(path, {key: use(loadmat(path)[key])})
def unpickled(use):
    def f(path):
        x = pickle.loads(path.read_bytes(), encoding='latin1')
        path.write_bytes(pickle.dumps(use(x), 2))
    return f
def listed(folder):
    "The last picture of a list gets the bytes of the first."
    def f(path):
        names = [x.split()[0] for x in path.read_text().splitlines()]
        (path.parent/folder/f'{names[-1]}.jpg').write_bytes((path.parent/folder/f'{names[0]}.jpg').read_bytes())
    return f
def copied(pattern):
    "One picture's bytes in the place of one of another class."
    def f(path):
        files = sorted(path.parent.parent.glob(pattern))
        files[-1].write_bytes(files[0].read_bytes())
    return f

BIN, PY, STL, CRAFT = 'cifar-10-batches-bin', 'cifar-10-batches-py', 'stl10_binary', 'fgvc-aircraft-2013b/data'
FAULTS = {
    # a wrong layout: a file or folder is not there
    'cifar10, no test batch':       ('cifar10', f'{BIN}/test_batch.bin', gone, ['no test_batch.bin', 'not complete', 'cifar-10-binary.tar.gz', '<class>']),
    'cifar10, no names':            ('cifar10', f'{BIN}/batches.meta.txt', gone, ['no batches.meta.txt']),
    'cifar10 python, no batch':     ('cifar10-py', f'{PY}/test_batch', gone, ['no test_batch:', 'batches.meta']),
    'cifar10 python, no names':     ('cifar10-py', f'{PY}/batches.meta', gone, ['no batches.meta:']),
    'stl10, no labels':             ('stl10', f'{STL}/test_y.bin', gone, ['no test_y.bin', 'stl10_binary']),
    'stl10, no names':              ('stl10', f'{STL}/class_names.txt', gone, ['no class_names.txt']),
    'flowers, no splits':           ('flowers', 'setid.mat', gone, ['no setid.mat', '102flowers.tgz']),
    'flowers, no picture':          ('flowers', 'jpg/image_00009.jpg', gone, ['no jpg/image_00009.jpg', 'setid.mat names']),
    'pets, no picture':             ('pets', 'images/Abyssinian_*1.jpg', gone, ['no images/Abyssinian_', 'annotations/test.txt names']),
    'pets, no list':                ('pets', 'annotations/test.txt', lambda p: (gone(p), (p.parent.parent/'annotations/list.txt').unlink()), ['images']),
    'objectnet, no table':          ('objectnet', 'objectnet-1.0/mappings/folder*', gone, ['no mappings/folder_to_objectnet_label.json']),
    'food, no list':                ('food', 'food-101/meta/test.txt', gone, ['no meta/test.txt', 'food-101.tar.gz']),
    'food, no picture':             ('food', 'food-101/images/apple_pie/1*.jpg', gone, ['no images/apple_pie/1', 'meta/test.txt names']),
    'aircraft, no variants':        ('aircraft', f'{CRAFT}/variants.txt', gone, ['no variants.txt']),
    'aircraft, no list':            ('aircraft', f'{CRAFT}/images_variant_test.txt', gone, ['no images_variant_test.txt']),
    # a class is missing
    'cifar10, a class':             ('cifar10', f'{BIN}/batches.meta.txt', more('deer'), ['1 of 4 classes', 'deer']),
    'cifar10 python, a class':      ('cifar10-py', f'{PY}/batches.meta', unpickled(lambda x: {'label_names': [*x['label_names'], 'deer']}), ['deer']),
    'stl10, a class':               ('stl10', f'{STL}/class_names.txt', more('cat'), ['no test image: cat']),
    'flowers, a class':             ('flowers', 'imagelabels.mat', mat('labels', lambda y: np.where(y == 2, 3, y)), ['no test image: hard-leaved']),
    'pets, a class':                ('pets', 'annotations/test.txt', without('american_bulldog'), ['no image of the class 2 of 3']),
    'objectnet, a class':           ('objectnet', 'objectnet-1.0/mappings/objectnet_to*', table(lambda x: x | {'Air freshener': 'a', 'Wok': 'wok'}),
                                     ["no folder of the class 'Wok'"]),
    'objectnet, a folder':          ('objectnet', 'objectnet-1.0/images/banana', lambda p: [f.unlink() for f in p.iterdir()], ['no test image: banana']),
    'food, a class':                ('food', 'food-101/meta/test.txt', without('baby'), ['no test image: baby back ribs']),
    'aircraft, a class':            ('aircraft', f'{CRAFT}/variants.txt', more('Yak-42'), ['no test image: Yak-42']),
    # a picture has two labels
    'cifar10, twice':               ('cifar10', f'{BIN}/test_batch.bin', same_row(3073, 1), ['test_batch.bin/00000 and', 'two labels', 'leave-out.txt']),
    'cifar10 python, twice':        ('cifar10-py', f'{PY}/test_batch', unpickled(lambda x: x | {'data': np.r_[x['data'][:1], x['data'][:1], x['data'][2:]]}),
                                     ['test_batch/00000 and test_batch/00001', '(airplane and automobile)']),
    'stl10, twice':                 ('stl10', f'{STL}/test_X.bin', same_row(27648, 0), ['test_X.bin/00000 and', 'two labels']),
    'flowers, twice':               ('flowers', 'jpg/image_00007.jpg', lambda p: p.write_bytes((p.parent/'image_00008.jpg').read_bytes()), ['two labels']),
    'pets, twice':                  ('pets', 'annotations/test.txt', listed('../images'), ['images/Abyssinian_', 'two labels (Abyssinian and American Pit']),
    'objectnet, twice':             ('objectnet', 'objectnet-1.0/images/banana/*', copied('[bd]*/*.png'), ['two labels', '(banana and dress shoe (men))']),
    'food, twice':                  ('food', 'food-101/images/apple_pie/1*', copied('*/1*.jpg'), ['two labels', 'images/apple_pie/1']),
    'aircraft, twice':              ('aircraft', f'{CRAFT}/images_variant_test.txt', listed('images'), ['two labels (707-320 and Boeing 717)']),
    # damaged
    'cifar10, cut':                 ('cifar10', f'{BIN}/test_batch.bin', cut, ['test_batch.bin has', '3073', 'cut short']),
    'cifar10, empty':               ('cifar10', f'{BIN}/test_batch.bin', lambda p: p.write_bytes(b''), ['test_batch.bin is empty']),
    'cifar10 python, cut':          ('cifar10-py', f'{PY}/test_batch', cut, ['test_batch is not a pickle', 'damaged', 'Download']),
    'cifar10 python, no array':     ('cifar10-py', f'{PY}/test_batch', unpickled(lambda x: {'labels': [1]}), ['holds no array data']),
    'cifar10 python, labels':       ('cifar10-py', f'{PY}/test_batch', unpickled(lambda x: x | {'labels': [1]}), ['a number for each of 6 images']),
    'cifar10, a label':             ('cifar10', f'{BIN}/test_batch.bin', bytes_of(lambda a: a.__setitem__(0, 77)), ['label 77', '3 classes']),
    'stl10, cut':                   ('stl10', f'{STL}/test_X.bin', cut, ['test_X.bin has', '27648', 'cut short']),
    'stl10, labels cut':            ('stl10', f'{STL}/test_y.bin', cut, ['labels for the 6 images']),
    'stl10, labels from 0':         ('stl10', f'{STL}/test_y.bin', bytes_of(lambda a: a.__isub__(1)), ['label -1']),
    'flowers, matrix cut':          ('flowers', 'imagelabels.mat', lambda p: p.write_bytes(p.read_bytes()[:150]), ['imagelabels.mat', 'MATLAB']),
    'flowers, matrix of another':   ('flowers', 'setid.mat', mat('trnid', lambda y: y), ["no numbers 'tstid'"]),
    'flowers, matrices apart':      ('flowers', 'imagelabels.mat', mat('labels', lambda y: y[:, :8]), ['none of the 8']),
    'flowers, too many classes':    ('flowers', 'imagelabels.mat', mat('labels', lambda y: y + 100), ['labels outside of 1 to 102']),
    'pets, a line':                 ('pets', 'annotations/test.txt', first('Abyssinian_1'), ["the line 'Abyssinian_1'"]),
    'pets, two breeds':             ('pets', 'annotations/test.txt', first('beagle_9 1 2 1'), ['class 1 both beagle and Abyssinian']),
    'objectnet, no json':           ('objectnet', 'objectnet-1.0/mappings/folder*', cut, ['not valid JSON']),
    'food, an unknown class':       ('food', 'food-101/meta/test.txt', first('sushi/12'), ["'sushi/12'", 'meta/classes.txt']),
    'food, labels cut':             ('food', 'food-101/meta/labels.txt', first(''), ['names 2 classes']),
    'food, named twice':            ('food', 'food-101/meta/test.txt', lambda p: lines(p, lambda x: [*x, x[0]]), ['twice']),
    'aircraft, an unknown variant': ('aircraft', f'{CRAFT}/images_variant_test.txt', first('0000140 Concorde'), ["'Concorde'"]),
    # numbers and repeated names
    'cifar10, numbers':             ('cifar10', f'{BIN}/batches.meta.txt', lambda p: p.write_text('0\n1\n2\n'), ["'0' is no word", 'a photo of a 0']),
    'stl10, numbers':               ('stl10', f'{STL}/class_names.txt', lambda p: p.write_text('1\n2\n3\n'), ["'1' is no word"]),
    'food, numbers':                ('food', 'food-101/meta/labels.txt', lambda p: p.write_text('1\n2\n3\n'), ["'1' is no word"]),
    'aircraft, numbers':            ('aircraft', f'{CRAFT}', lambda p: [f.write_text(f.read_text().replace('707-320', '707')) for f in p.glob('*.txt')],
                                     ["'707' is no word"]),
    'objectnet, numbers':           ('objectnet', 'objectnet-1.0/mappings', lambda p: [f.write_text(f.read_text().replace('"Banana"', '"7"'))
                                     for f in p.glob('*.json')], ["'7' is no word"]),
    'stl10, the same name':         ('stl10', f'{STL}/class_names.txt', first('Bird'), ["two classes are called 'bird'"]),
}
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_of_an_archive_is_one_error_that_says_what_is_wrong(data, name):
    kind, file, spoil, says = FAULTS[name]
    made(data, kind)
    images_in(data/called(kind), called(kind))
    spoil(one(file, data/called(kind)))
    refused(lambda: check_benchmarks([called(kind)]), *says)

@pytest.mark.parametrize('kind', KINDS)
def test_fewer_than_two_classes_are_refused_with_the_wanted_layout(data, kind):
    made(data, kind, classes=1)
    refused(lambda: check_benchmarks([called(kind)]), '1 class;', 'two or more', 'Wanted in')

@pytest.mark.parametrize('packed', [False, True], ids=['unpacked', 'packed'])
@pytest.mark.parametrize('kind', LAYOUTS[2:])
def test_a_picture_that_is_cut_is_named_as_it_is_in_the_archive_and_can_be_left_out(data, kind, packed, tmp_path):
    make(kind, tmp_path/'made')
    t = images_in(tmp_path/'made', kind)
    cut(t.members[0].home)
    data.mkdir(parents=True)
    (tmp_path/'made').rename(data/kind)
    if packed: pack(data/kind, kind)
    check_benchmarks([kind])                                                            # no picture is decoded for this
    message = refused(lambda: benchmark(kind, 'test', 16), t.names[0], 'not a complete image', 'leave-out.txt')
    assert '/cache/' not in message and (not packed or '.tar.gz: ' in message or '.tgz: ' in message or '.zip: ' in message)
    (data/kind/'leave-out.txt').write_text(t.names[0] + '\n')
    assert t.names[0] not in benchmark(kind, 'test', 16).names
    (data/kind/'leave-out.txt').write_text('nothing.jpg\n')
    refused(lambda: check_benchmarks([kind]), "'nothing.jpg'", t.names[0])

def test_a_pickle_that_would_run_code_is_not_run(data, tmp_path):
    made(data, 'cifar10-py')
    class Harm:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'harmed'),)
    (data/f'cifar10/{PY}/test_batch').write_bytes(pickle.dumps({'data': Harm()}, 2))
    refused(lambda: check_benchmarks(['cifar10']), 'test_batch', 'mkdir')
    assert not (tmp_path/'harmed').exists()

# ---------------------------------------------------------------- archives as files
def asks_for_a_password(path):
    with zipfile.ZipFile(path, 'a') as z:
        for i in z.infolist(): i.flag_bits |= 1
        z._didModify = True

def changed(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 255
    path.write_bytes(data)

ARCHIVE_FAULTS = {
    'a tar that is cut':        ('food', 'food-101.tar.gz', cut, ['food-101.tar.gz is cut short or damaged']),
    'the last bytes missing':   ('stl10', 'stl10_binary.tar.gz', lambda p: p.write_bytes(p.read_bytes()[:-6]), ['cut short or damaged']),
    'a byte changed':           ('pets', 'images.tar.gz', changed, ['images.tar.gz is cut short or damaged']),
    'a web page':               ('stl10', 'stl10_binary.tar.gz', lambda p: p.write_text('<!doctype html>'), ['is an HTML page']),
    'nothing':                  ('stl10', 'stl10_binary.tar.gz', lambda p: p.write_bytes(b''), ['is empty']),
    'a zip that is cut':        ('objectnet', 'objectnet-1.0.zip', cut, ['objectnet-1.0.zip is cut short or damaged']),
    'a password':               ('objectnet', 'objectnet-1.0.zip', asks_for_a_password, ['asks for a password', 'Unpack it']),
    'half of a download':       ('pets', 'annotations.tar.gz', gone, ['images.tar.gz holds no benchmark that is known', 'annotations/test.txt']),
    'labels forgotten':         ('flowers', 'imagelabels.mat', gone, ['no imagelabels.mat']),
}
@pytest.mark.parametrize('name', ARCHIVE_FAULTS)
def test_an_archive_that_cannot_be_read_is_one_error(data, name):
    kind, file, spoil, says = ARCHIVE_FAULTS[name]
    made(data, kind, packed=True)
    spoil(data/kind/file)
    refused(lambda: check_benchmarks([kind]), *says)

def test_the_archive_of_another_benchmark_says_where_it_belongs(data):
    make('stl10', data/'cifar10', packed=True)
    refused(lambda: check_benchmarks(['cifar10']), 'the files of STL10', 'benchmarks/stl10')
    make('food', data/'mine', packed=True)                                              # under a name of one's own it is read
    assert benchmark('mine', 'test', 16).prompts[0].endswith('a type of food.')

def test_a_name_in_an_archive_never_becomes_a_path(data, tmp_path):
    made(data, 'food', packed=True)
    with tarfile.open(tmp_path/'x.tar.gz', 'w:gz') as t, tarfile.open(data/'food/food-101.tar.gz') as old:
        for i in old: t.addfile(i, old.extractfile(i))
        i = tarfile.TarInfo('../../outside.txt')
        t.addfile(i)
        i = tarfile.TarInfo('food-101/link')
        i.type, i.linkname = tarfile.SYMTYPE, '/etc/passwd'
        t.addfile(i)
    (tmp_path/'x.tar.gz').replace(data/'food/food-101.tar.gz')
    benchmark('food', 'test', 16)
    assert not list(tmp_path.rglob('outside*')) and all(len(f.name) == 32 or f.suffix == '.json' for f in (tmp_path/'cache/archives').iterdir())

def test_an_archive_is_read_from_the_cache_the_second_time(data, monkeypatch):
    made(data, 'aircraft', packed=True)
    first = benchmark('aircraft', 'test', 16)
    monkeypatch.setattr(tarfile, 'open', lambda *a, **k: pytest.fail('opened again'))
    assert torch.equal(benchmark('aircraft', 'test', 16).images, first.images)

# ---------------------------------------------------------------- folders, as before
def test_a_hidden_folder_of_pictures_is_refused_and_that_of_a_tool_is_not(data):
    for i, c in enumerate(('cat', 'dog', '.ipynb_checkpoints')): save(picture(i, 20, 20), data/f'b/{c}/0.png')
    assert list(benchmark_files('b')) == ['cat', 'dog']
    save(picture(9, 20, 20), data/'b/.eel/0.png')
    refused(lambda: check_benchmarks(['b']), '.eel', 'hidden', '<class>')

def test_one_folder_per_class_under_a_name_of_the_seven_keeps_its_template_and_has_names(data):
    for i, c in enumerate(('tabby', 'pug')): save(picture(i, 20, 20), data/f'pets/{c}/0.png')
    b = benchmark('pets', 'test', 16)
    assert b.names == ['pug/0.png', 'tabby/0.png'] and b.prompts[0] == 'a photo of a pug, a type of pet.'
    assert benchmark_content('pets') == data/'pets'
    (data/'pets/images').mkdir()
    refused(lambda: check_benchmarks(['pets']), 'parts of a data set', 'annotations/test.txt')

# ---------------------------------------------------------------- lists, keys, the command
def test_a_list_of_what_was_drawn_is_written_with_hashes_of_the_content(data, tmp_path):
    m = made(data, 'food')
    b = benchmark('food', 'test', 16)
    assert save_subset(b, tmp_path, 3) == ['subset-food-test-3.csv']
    rows = pd.read_csv(tmp_path/'subset-food-test-3.csv')
    assert rows.image.tolist() == b.names and rows['class'].unique().tolist() == m.classes and rows.label.tolist() == m.labels
    f = data/'food/food-101'/b.names[0]
    assert rows.blake2b[0] == hashlib.blake2b(f.read_bytes(), digest_size=16).hexdigest()
    drawn = Benchmark('mini', 'test', ['a', 'b'], torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), torch.arange(2))
    assert save_subset(drawn, tmp_path) == [] and not len(subset_list(drawn)) and not list(tmp_path.glob('*mini*'))

def test_names_and_hashes_are_no_part_of_a_benchmark_s_key_and_follow_its_images():
    x, y = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1])
    plain, named = Benchmark('b', 'test', ['a', 'b'], x, y, y), Benchmark('b', 'test', ['a', 'b'], x, y, y, names=['p', 'q', 'r'], hashes=['1', '2', '3'])
    assert plain.key == named.key and named.take(y == 1).hashes == ['2', '3'] and plain.take(y == 1).names is None
    refused(lambda: Benchmark('b', 'test', ['a', 'b'], x, y, y, names=['p']), 'one of each per image')

def test_the_key_of_a_step_changes_with_the_drawn_images_and_with_no_others(data):
    made(data, 'food', per_class=6)
    study = Study.make(name='s', world='sd15', concepts=[], checkpoints={}, methods=[], overrides=dict(per_class=2, fresh=1))
    def keys(): return [f for f in files_of(study.part('base'), 'base') if isinstance(f, str)]
    def semantic(): return [f for f in files_of(study.part('semantic'), 'semantic') if isinstance(f, str)]
    before, wider, t = keys(), semantic(), images_in(data/'food', 'food')
    assert len(before) == 1 and before != wider
    usual = study.but(overrides=dict(per_class=None, fresh=1))                                   # as many as in the paper, five, and one more
    assert {*files_of(usual.part('base'), 'base')} & {images_in(data/'food', 'food').content(t.draw(5))}
    assert {*files_of(usual.part('semantic'), 'semantic')} & {images_in(data/'food', 'food').content(t.draw(6))}
    two, three = t.draw(2), t.draw(3)
    def change(i): save(picture(200 + i, 60, 48), t.members[i].home)
    change(next(i for i in range(len(t)) if i not in three))
    assert keys() == before and semantic() == wider
    change(next(i for i in three if i not in two))
    assert keys() == before and semantic() != wider
    change(two[0])
    assert keys() != before

def test_the_base_step_writes_the_list_beside_its_scores(data, tmp_path):
    from types import SimpleNamespace
    from openworld_forget.metrics.classify import Stages, classify
    from openworld_forget.study.step_base import base_scores
    from openworld_forget.worlds.tiny import tiny_world
    made(data, 'pets', packed=True)
    world, stages = tiny_world(), Stages(steps=(2, 3), keep='confident', z=1.)
    def noise(name='', floor=False): return stages.plan(int(floor))
    def scores(world, b, floor=False, desc=''): return classify(world, world.encode(b.images.float()/255), b.prompts, noise(floor=floor), stages)
    run = SimpleNamespace(world=world, folder=tmp_path/'base', benchmark=lambda n, s: benchmark(n, s, 64, 1), noise_plan=noise, scores=scores)
    b, _, files = base_scores(run, 'pets', 'test')
    assert sorted(files) == sorted(p.name for p in run.folder.iterdir()) and 'subset-pets-test-0.csv' in files
    assert pd.read_csv(run.folder/'subset-pets-test-0.csv').image.tolist() == b.names

def test_a_plan_does_not_look_at_a_benchmark_again_for_every_run(data, tmp_path, monkeypatch):
    from openworld_forget.study.plan import plan
    from openworld_forget.worlds import folders
    made(data, 'food', per_class=3)
    for k, name in enumerate(('mug', 'cup')):
        for i in range(3): save(picture(10*k + i, 60, 60), data.parent/f'subjects/{name}/{i}.png')
        (data.parent/f'subjects/{name}/class.txt').write_text(name)
    looks, look = [], folders.images_of
    monkeypatch.setattr(folders, 'images_of', lambda name: looks.append(name) or look(name))
    plan(Study.make(name='s', world='sd15', concepts=['mug', 'cup'], methods=['db', 'lora']), tmp_path/'out')
    assert looks == ['food']*3                          # for the estimate, for the base, and with fresh images for the others

@pytest.mark.parametrize('kind', KINDS)
def test_the_command_says_what_an_archive_holds_and_where_it_belongs(data, tmp_path, capsys, kind):
    m = make(kind, tmp_path/'downloads', packed=True)
    (tmp_path/'downloads/other.tar.gz').write_bytes(b'x')                               # another download is none of its business
    archive = one('*.zip' if kind == 'objectnet' else '[0-9a-hj-z]*.t*gz' if kind == 'pets' else '[0-9cfs]*.t*gz', tmp_path/'downloads')
    assert command([called(kind), str(archive), '--list', str(tmp_path/'list.csv')]) == 0
    out = capsys.readouterr().out
    for s in ('3 classes, 6 test images, 2 to 2 of a class', 'this is a part', m.classes[0], TEMPLATES[called(kind)].format(m.classes[0]), 'nothing is wrong',
              str(data/called(kind))): assert s in out, (s, out)
    assert len(pd.read_csv(tmp_path/'list.csv')) == 6
    made(data, kind)
    command([called(kind), '--all'])
    assert 'A study finds it here' in capsys.readouterr().out

def test_the_command_refuses_what_is_no_benchmark(data, tmp_path):
    refused(lambda: command(['pets', str(tmp_path/'none')]), 'does not exist')
    (tmp_path/'x.txt').write_text('x')
    refused(lambda: command(['pets', str(tmp_path/'x.txt')]), 'no archive')
    (tmp_path/'x.zip').write_bytes(b'x')
    refused(lambda: command(['mine', str(tmp_path/'x.zip')]), 'Unpack it')

def test_all_seven_at_once(data):
    every = make_all(data.parent, per_class=1, classes=2)
    assert sorted(every) == sorted(LAYOUTS) == sorted(OURS) == sorted(p.name for p in data.iterdir())
    check_benchmarks(list(every))
    assert set(NAMES) | {'flowers'} == set(OURS)
