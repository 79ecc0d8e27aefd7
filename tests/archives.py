"""Tiny archives in the seven official layouts, made from nothing: for tests of their readers, and for studies that run on all of them.

    made = make_all(folder, per_class=2, classes=3)                  # folder/benchmarks/cifar10/..., one folder for each of the seven
    made = make('pets', folder/'benchmarks/pets', packed=True)       # as the archives that one downloads

Every picture is a colour of its own whose left half is darker, so that a wrong order of planes, rows or columns shows. Beside the test images lie training
images (and, of ObjectNet, a class that ImageNet has not) that must not be read."""
import json, struct, tarfile, zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

NAMES = {
    'cifar10': 'airplane automobile bird cat deer dog frog horse ship truck'.split(),
    'stl10': 'airplane bird car cat deer dog horse monkey ship truck'.split(),
    'pets': 'Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman'.split(),
    'food': 'apple_pie baby_back_ribs caesar_salad french_fries pad_thai tiramisu waffles'.split(),
    'aircraft': ['707-320', 'A300B4', 'Boeing 717', 'C-130', 'F-16A/B', 'Spitfire', 'Tu-134'],
    'objectnet': ['Alarm clock', 'Banana', 'Dress shoe (men)', 'Still Camera', 'T-shirt', 'TV', 'Wine bottle'],
}
SAID = {                                        # how the first seven classes are called in prompts
    'cifar10': NAMES['cifar10'], 'stl10': NAMES['stl10'], 'aircraft': NAMES['aircraft'],
    'flowers': ['pink primrose', 'hard-leaved pocket orchid', 'Canterbury bells', 'sweet pea', 'English marigold', 'tiger lily', 'moon orchid'],
    'pets': ['Abyssinian', 'American Bulldog', 'American Pit Bull Terrier', 'Basset Hound', 'Beagle', 'Bengal', 'Birman'],
    'food': ['apple pie', 'baby back ribs', 'Caesar salad', 'French fries', 'pad thai', 'tiramisu', 'waffles'],
    'objectnet': ['alarm clock', 'banana', 'dress shoe (men)', 'still camera', 'T-shirt', 'TV', 'wine bottle'],
}
ARCHIVES = {                                    # archive -> what is in it, at its top
    'cifar10': {'cifar-10-binary.tar.gz': ['cifar-10-batches-bin']}, 'cifar10-py': {'cifar-10-python.tar.gz': ['cifar-10-batches-py']},
    'stl10': {'stl10_binary.tar.gz': ['stl10_binary']}, 'flowers': {'102flowers.tgz': ['jpg']},
    'pets': {'images.tar.gz': ['images'], 'annotations.tar.gz': ['annotations']}, 'objectnet': {'objectnet-1.0.zip': ['objectnet-1.0']},
    'food': {'food-101.tar.gz': ['food-101']}, 'aircraft': {'fgvc-aircraft-2013b.tar.gz': ['fgvc-aircraft-2013b']},
}
LAYOUTS = ['cifar10', 'stl10', 'flowers', 'pets', 'objectnet', 'food', 'aircraft']
KINDS = ['cifar10-py', *LAYOUTS]                # cifar10 is published twice

@dataclass
class Made:
    "What was made: the classes as prompts say them, and of every test image, by class, its class and the number of its picture."
    kind: str
    place: Path
    classes: list[str]
    labels: list[int]
    shown: list[int]

def colour(k): return np.array([(37*k + 60) % 256, (91*k + 150) % 256, (153*k + 20) % 256])

def picture(k, w, h):
    "uint8 [h, w, 3]: picture number k, to 255."
    a = np.empty((h, w, 3), np.uint8)
    a[:] = colour(k)
    a[:, :w//2] //= 2
    return a

def save(a, path, **how):
    "A picture as a file; by its name JPEG (hardly compressed) or PNG."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **(how or (dict(quality=98, subsampling=0) if path.suffix == '.jpg' else {})))

def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{x}\n' for x in lines))

# ---------------------------------------------------------------- a pickle of Python 2, which Python 3 does not write
def number(n): return b'K' + bytes([n]) if 0 <= n < 256 else b'J' + struct.pack('<i', n)
def string(s): return (b'U' + bytes([len(s)]) if len(s) < 256 else b'T' + struct.pack('<i', len(s))) + s

def python2(x):
    "The opcodes of protocol 2 for what CIFAR's pickles hold."
    if isinstance(x, bytes): return string(x)
    if isinstance(x, int): return number(x)
    if isinstance(x, list): return b'](' + b''.join(map(python2, x)) + b'e'
    if isinstance(x, dict): return b'}(' + b''.join(python2(k) + python2(v) for k, v in x.items()) + b'u'
    empty = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n' + number(0) + b'\x85' + string(b'b') + b'\x87R'
    kind = b'cnumpy\ndtype\n' + string(b'u1') + number(0) + number(1) + b'\x87R(' + number(3) + string(b'|') + b'NNN' + number(-1)*2 + number(0) + b'tb'
    shape = b''.join(map(number, x.shape)) + b'\x86'
    return empty + b'(' + number(1) + shape + kind + b'\x89' + string(x.tobytes()) + b'tb'

def pickled(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'\x80\x02' + python2(x) + b'.')

# ---------------------------------------------------------------- the seven
def cifar10(d, order, classes):
    rows = np.stack([np.r_[c, picture(k, 32, 32).transpose(2, 0, 1).ravel()] for c, k in order]).astype(np.uint8)
    (d := d/'cifar-10-batches-bin').mkdir(parents=True)
    rows.tofile(d/'test_batch.bin')
    rows[::-1].tofile(d/'data_batch_1.bin')
    text(d/'batches.meta.txt', *NAMES['cifar10'][:classes], '')

def cifar10_py(d, order, classes):
    data, labels = np.stack([picture(k, 32, 32).transpose(2, 0, 1).ravel() for _, k in order]), [c for c, _ in order]
    d = d/'cifar-10-batches-py'
    batch = {b'batch_label': b'testing batch 1 of 1', b'labels': labels, b'data': data, b'filenames': [b'x_%06d.png' % k for _, k in order]}
    pickled(d/'test_batch', batch)
    pickled(d/'data_batch_1', batch | {b'labels': labels[::-1]})
    pickled(d/'batches.meta', {b'num_cases_per_batch': len(order), b'label_names': [n.encode() for n in NAMES['cifar10'][:classes]], b'num_vis': 3072})

def stl10(d, order, classes):
    (d := d/'stl10_binary').mkdir(parents=True)
    for split, of in (('test', order), ('train', order[::-1])):
        np.stack([picture(k, 96, 96).transpose(2, 1, 0) for _, k in of]).tofile(d/f'{split}_X.bin')          # plane, column, row
        np.uint8([c + 1 for c, _ in of]).tofile(d/f'{split}_y.bin')
    text(d/'class_names.txt', *NAMES['stl10'][:classes])

def flowers(d, order, classes):
    n = len(order)                              # training images first: 1 to n
    for i, (_, k) in enumerate([*order, *order], 1): save(picture(k if i > n else 255 - k, 60, 48), d/f'jpg/image_{i:05d}.jpg')
    labels = [c + 1 for c, _ in order]
    savemat(d/'imagelabels.mat', {'labels': np.uint8([labels[::-1] + labels])})
    ids = np.arange(1, n + 1, dtype=np.uint16)[None]
    savemat(d/'setid.mat', {'trnid': ids, 'valid': ids[:, :1], 'tstid': ids + np.uint16(n)})

def pets(d, order, classes):
    lines, train = [], []
    for c, k in order:
        breed = NAMES['pets'][c]
        for i, to in ((k + 1, lines), (k + 300, train)):
            save(picture(k if to is lines else 255 - k, 60, 48), d/f'images/{breed}_{i}.jpg')
            to.append(f'{breed}_{i} {c + 1} {2 - breed[0].isupper()} {c + 1}')
    text(d/'annotations/test.txt', *lines)
    text(d/'annotations/trainval.txt', *train)
    text(d/'annotations/list.txt', '#Image CLASS-ID SPECIES BREED ID', *train, *lines)
    (d/'images/._Abyssinian_1.jpg').write_bytes(b'x')

def folder_of(label): return label.lower().replace(' ', '_').replace('(', '').replace(')', '').replace('-', '_')

def objectnet(d, order, classes):
    d, labels = d/'objectnet-1.0', NAMES['objectnet'][:classes]
    for c, k in [*order, (-1, 250)]:
        a = np.empty((50, 62, 3), np.uint8)
        a[:] = 255, 0, 0
        a[1:-1, 1:-1] = picture(k, 60, 48)
        save(a, d/f'images/{folder_of(labels[c]) if c >= 0 else "air_freshener"}/{k:04x}.png')
    tables = {'folder_to_objectnet_label': {folder_of(x): x for x in ['Air freshener', *labels]}, 'pytorch_to_imagenet_2012_id': {'0': 1},
              'objectnet_to_imagenet_1k': {x: f'{x.lower()}; something else' for x in labels}}
    for name, t in tables.items(): text(d/f'mappings/{name}.json', json.dumps(t))

def food(d, order, classes):
    d, folders = d/'food-101', NAMES['food'][:classes]
    test, train = [f'{folders[c]}/{1000 + k}' for c, k in order], [f'{folders[c]}/{5000 + k}' for c, k in order]
    for names, at in ((test, 0), (train, 255)):
        for x, (_, k) in zip(names, order): save(picture(abs(at - k), 60, 48), d/f'images/{x}.jpg')
    text(d/'meta/test.txt', *test)
    text(d/'meta/train.txt', *train)
    text(d/'meta/classes.txt', *folders)
    text(d/'meta/labels.txt', *[x.replace('_', ' ').capitalize() for x in folders])

def aircraft(d, order, classes):
    d, variants = d/'fgvc-aircraft-2013b/data', NAMES['aircraft'][:classes]
    lines = {'test': [], 'trainval': []}
    for split, at in (('test', 100), ('trainval', 5000)):
        for c, k in order:
            a = np.full((68, 60, 3), 255, np.uint8)                                 # the banner: the lower 20 pixels
            a[:48] = picture(k if split == 'test' else 255 - k, 60, 48)
            save(a, d/f'images/{at + k:07d}.jpg')
            lines[split].append(f'{at + k:07d} {variants[c]}')
    for split, x in lines.items(): text(d/f'images_variant_{split}.txt', *x)
    text(d/'variants.txt', *variants)

MAKERS = dict(zip(KINDS, (cifar10_py, cifar10, stl10, flowers, pets, objectnet, food, aircraft)))

def pack(place, kind):
    "Put what was made into the archives that one downloads; the rest stays beside them."
    for name, tops in ARCHIVES[kind].items():
        files = sorted(f for t in tops for f in (place/t).rglob('*') if f.is_file())
        if name.endswith('.zip'):
            with zipfile.ZipFile(place/name, 'w') as z:
                for f in files: z.write(f, f.relative_to(place))
        else:
            with tarfile.open(place/name, 'w:gz', compresslevel=1) as t:
                for f in files: t.add(f, f.relative_to(place))
        for f in files: f.unlink()
        for t in tops:
            for p in sorted((place/t).rglob('*'), reverse=True): p.rmdir()
            (place/t).rmdir()

def make(kind, place, per_class=2, classes=3, packed=False):
    "One of the seven (`KINDS`) in the folder `place`: unpacked, or as downloaded. At most 7 classes, 36 images of each."
    first = 20*KINDS.index(kind)
    order = [(c, (first + c + classes*i) % 250) for i in range(per_class) for c in range(classes)]        # not sorted by class
    Path(place).mkdir(parents=True, exist_ok=True)
    MAKERS[kind](Path(place), order, classes)
    if packed: pack(Path(place), kind)
    order = sorted(order, key=lambda o: (o[0], order.index(o)))
    return Made(kind, Path(place), SAID[kind.removesuffix('-py')][:classes], [c for c, _ in order], [k for _, k in order])

def make_all(folder, per_class=2, classes=3, packed=False):
    "All seven in `folder/benchmarks/<name>`, for `OWF_DATA=folder`: name -> what was made."
    return {name: make(name, Path(folder)/'benchmarks'/name, per_class, classes, packed) for name in LAYOUTS}
