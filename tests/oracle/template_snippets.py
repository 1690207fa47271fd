"""Small templates for single features of the language, and a generator of random ones."""

CONTEXT = {
    "s": "Hello, World", "u": "Grüße 你好 🌍 ß", "w": "  spaced\tout \n", "e": "", "q": "it's \"q\"",
    "lines": "a\nb\r\nc\n\nd", "path": "a.b.c.d", "num": "42", "fl": "3.75", "html": "<a & 'b'>",
    "i": 7, "z": 0, "neg": -3, "big": 123456789012, "f": 2.5, "tiny": 1e-7, "huge": 1e22, "third": 0.1,
    "t": True, "n": None, "no": False,
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "el": [], "mix": [1, "a", None, 2.5, True],
    "nest": [[1, 2], [3], []], "d": {"b": 1, "a": 2, "c": {"x": [1, 2], "y": None}}, "ed": {},
    "users": [{"name": "Zoe", "age": 30, "tags": ["x"]}, {"name": "adam", "age": 25, "tags": []},
              {"name": "Bob", "age": 30, "address": {"city": "Rome"}}],
    "k": {"items": "shadow", "get": 1, "keys": 2, "1": "one", "_p": "under"},
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 % -3
7.5 // 2, -7.5 % 2, 7.5 % -2, 1e300 * 1e10, -0.0, 0.0 % -3
2 ** 3 ** 2, 2 ** -1, 2 ** 0.5, (-2) ** 2, -2 ** 2
1 / 0
1 // 0
1 % 0
0 ** -1
10 ** 18, 1e16, 1e15, 123456789.123, 1e-4, 1e-5, 1.5e300, 5e-324, 100.0, 1e22
1_000 + 0x1F + 0b101 + 0o17
1.0, 1.50, 0.1 + 0.2, 3e2, 1_0.5
true + 1, true * 3, -true, +true, not 1
'a' 'b' "c"
'a\tb\n\\ \x41 \u00e9 \U0001F30D \101 \q \' "'
'é' ~ 1 ~ none ~ true ~ 1.0 ~ undefined_thing ~ [1, 'a']
'a' + 1
1 + 'a'
'ab' * 3, 3 * 'ab', 'ab' * -1, [1] * 2, 2 * (1, 2)
'a' * 1.5
[1] + [2], (1,) + (2, 3)
[1] + (2,)
none + 1
i < 8 <= 8 != 9, 1 < 2 < 2, 1 == 1.0 == true
'a' < 'b', 'a' < 'B', [1, 2] < [1, 3], (1,) < (1, 0)
1 < 'a'
none < 1
[1] < (1,)
'a' in 'abc', 'x' in 'abc', '' in '', 2 in l, 9 in l, 'a' in d, 'z' not in d, not 'z' in d
1 in 'abc'
1 in 5
none in [none], undefined_thing in [1], undefined_thing in [undefined_thing]
[1] in {}
i and s, z and s, z or s, e or n or 'last', not e, not (i and z)
'yes' if i else 'no', 'yes' if z, ('yes' if z) is defined
'a' if z else 'b' if z else 'c'
undefined_thing
undefined_thing.x
undefined_thing['x']
undefined_thing + 1
undefined_thing()
undefined_thing is defined, undefined_thing == undefined_thing, undefined_thing | length, undefined_thing | list
undefined_thing ~ 'x', undefined_thing or 'x', not undefined_thing
undefined_thing == none, undefined_thing != 1
undefined_thing < 1
-undefined_thing
undefined_thing[1:]
s.nope, s.nope is undefined, d.nope, n.nope, i.nope
d.nope.deeper
s[0], s[-1], s[99] is undefined, u[6], u[-1], u[-3]
s[1:4], s[:-3], s[::2], s[::-1], s[5:2], s[-100:100], u[6:9], u[::-1], u[1::3]
l[0], l[-1], l[1:], l[::-1], l[True], l['x'] is undefined, l[9] is undefined, l[1.0] is undefined
s[::0]
s['a':]
n[1:]
d['b'], d.b, d['c']['x'][1], d.c.x.0, d['zz'] is undefined, d[1] is undefined
d[1:]
d[[1]] is undefined
k.items, k['items'], k.get, k['keys'], k._p, k['_p'], k.items is callable
k.items | string | length > 5
d.items() | list, d.keys() | list, d.values() | list
d.items(), d.keys(), d.values()
d.items() | length, d.keys()[0] is undefined, 'a' in d.keys(), ('a', 2) in d.items()
d.get('a'), d.get('zz'), d.get('zz', 5), d.get('zz', default=5)
d.get()
d.get('a', 1, 2)
l.append(1)
l.append is defined, l.append
d.update({'x': 1})
d.pop('a')
l.sort()
l.index(2), l.count(3), (1, 2, 2).count(2)
l.index(99)
s.__class__
s.__class__.__name__
s.upper(), s.lower(), s.title(), s.capitalize(), s.swapcase(), u.upper(), u.title(), 'ǆ'.title(), 'ŉx'.upper(), 'ﬁ'.upper()
'ΟΔΟΣ ΣΑΣ'.lower(), 'İ'.lower(), "they're bill's".title()
'ß'.capitalize(), 'ǆabc'.capitalize(), '1abc'.title()
w.strip() ~ '|', w.lstrip() ~ '|', w.rstrip() ~ '|', 'xxaxx'.strip('x'), 'abcba'.strip('ab'), 'xay'.lstrip('yx'), 'xay'.rstrip('yx'), ' a '.strip(none)
'a'.strip(1)
s.split(), s.split(', '), s.split('l', 1), 'a,b,,c'.split(','), ' a  b '.split(' '), ''.split(), ''.split(','), ' a b c '.split(none, 1), w.split(maxsplit=1), 'a-b-c'.split(sep='-')
'a'.split('')
s.rsplit('l', 1), 'a,b,c'.rsplit(',', 1), ' a b c '.rsplit(none, 1), 'a b c'.rsplit(), '  a  b'.rsplit(' ', 2), 'aXbXc'.rsplit('X')
lines.splitlines(), lines.splitlines(true), 'a\x0bb\x1cc\u2028d'.splitlines(), ''.splitlines()
s.startswith('He'), s.startswith('he'), s.startswith(('x', 'H')), s.endswith('ld'), s.startswith('l', 2), s.startswith('l', -2), s.endswith('lo', 0, 5), ''.startswith(''), 'a'.startswith('', 2)
s.startswith(1)
s.find('o'), s.find('o', 5), s.rfind('o'), s.find('zz'), u.find('你'), u.rfind('ß'), s.index('W'), s.count('l'), s.count(''), u.count(''), 'aaaa'.count('aa'), s.find('', 100)
s.index('zz')
s.replace('l', 'L'), s.replace('l', '', 2), s.replace('', '-'), 'aa'.replace('', '-', 2), s.replace('zz', 'y'), s.replace('o', 'oo', 1), u.replace('ß', 'ss'), 'aaa'.replace('a', 'b', 0), 'abc'.replace('', '.', 0)
','.join(['a', 'b']), ','.join('abc'), ''.join([]), ','.join({'x': 1})
','.join([1])
'abc'.removeprefix('a'), 'abc'.removesuffix('bc'), 'a=b=c'.partition('='), 'a=b=c'.rpartition('='), 'abc'.partition('x'), 'abc'.rpartition('x')
'5'.zfill(3), '-5'.zfill(4), 'ab'.ljust(4) ~ '|', 'ab'.rjust(4, '.'), 'ab'.center(5, '*'), 'abc'.center(6, '*'), 'abc'.center(2)
'12'.isdigit(), '1a'.isdigit(), ''.isdigit(), '²'.isdigit(), '²'.isdecimal(), '½'.isnumeric(), 'ab'.isalpha(), '你'.isalpha(), 'a1'.isalnum(), ' \t'.isspace(), 'AB'.isupper(), 'aB'.islower(), 'Ab Cd'.istitle(), 'é'.isascii()
'{} {}'.format(1, 'a'), '{0}{1}{0}'.format('x', 'y'), '{a}-{b.c}-{l[1]}'.format(a=1, b={'c': 2}, l=[1, 2]), '{{}}'.format()
'{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+d}|{:x}|{:#x}|{:,}|{:.2f}|{:.3}|{:%}|{:e}'.format('a', 'b', 'c', 'd', 42, 5, 255, 255, 1234567, 3.14159, 'abcdef', 0.25, 12345.678)
'{!r} {!s:>4}'.format('a', 'b'), '{:5}|{:5}|{:<5}|{:5}'.format(1, 'a', 2, true)
'{} {}'.format(1)
'{0} {}'.format(1, 2)
'{x}'.format()
'%s-%s' % ('a', 1), '%d%%' % 50, '%5.2f|%-5s|%05d|%x|%r|%c' % (3.14159, 'ab', 42, 255, 'q', 'z'), '%(a)s' % {'a': 1}, '%s' % none, '%s' % [1], 'x' % [], '%+d % d' % (1, 2), '%e %g' % (12345.678, 0.0001)
'%d' % 'a'
'%s %s' % 'a'
'%s' % ('a', 'b')
'%s' % undefined_thing ~ '|'
"%s, %s!" | format('a', 'b'), "%(x)s" | format(x=1)
[1, 'a', "it's", 'q"', none, true, 1.0, [], {}, {'a': 1}, (), (1,), (1, 2), undefined_thing]
['\n', '\\', '\x00\x7f', 'é', '\u200b', '\ue000', '\U0001F30D', '\xa0', "'\"", '\xad', '\u3000']
{'a': 1, 2: 'b', none: 3, true: 4, 1.5: 5, (1, 2): 6}
{'a': 1, 'a': 2}, {1: 'a', true: 'b', 1.0: 'c'}
{[1]: 2}
(1, 2) == (1, 2), [1] == (1,), {'a': 1, 'b': 2} == {'b': 2, 'a': 1}, 'a' == 'a', none == false
range(5), range(2, 5) | list, range(5, 0, -2) | list, range(0), range(3)[1], range(3)[-1], range(10)[2:5] | list, range(10)[::-3] | list, range(5) | length, 3 in range(5)
range(1000000)
range(1, 2, 0)
range('a')
dict(a=1, b=2), dict({'x': 1}, y=2), dict([('a', 1)]), dict()
namespace(a=1).a, namespace({'b': 2}).b, namespace().x is defined, namespace(a=1)
cycler(1, 2).next(), joiner('|')() ~ 'x'
s | upper, s | lower, s | title, s | capitalize, "foo-bar (baz) it's [qux] <a>" | title, 'hELLO wORLD' | title, u | title
5 | upper, none | upper, [1, 'A'] | lower
w | trim ~ '|', 'xxaxx' | trim('x'), 5 | trim
s | length, u | length, l | length, d | length, '' | count
5 | length
none | length
s | first, s | last, u | last, l | first, l | last, el | first is undefined, el | last is undefined, d | first, d | last
5 | first
l | select | first, (l | select) is iterable
l | select | last
l | select | length
l | reverse | list, s | reverse, u | reverse, d | reverse | list, (1, 2) | reverse | list
5 | reverse
s | list, d | list, (1, 2) | list, none | default([]) | list
none | list
l | sort, l | sort(reverse=true), ls | sort, ls | sort(case_sensitive=true), d | sort, 'bca' | sort, el | sort
mix | sort
users | sort(attribute='age') | map(attribute='name') | list, users | sort(attribute='age,name') | map(attribute='name') | list, users | sort(true, attribute='name') | map(attribute='name') | list
users | map(attribute='name') | list, users | map(attribute='address.city') | list
users | map(attribute='address.city', default='?') | list, users | map(attribute='tags.0', default='-') | list, users | map(attribute='nope') | list
ls | map('upper') | list, l | map('string') | join('-'), ls | map('replace', 'a', 'X') | list, nest | map('length') | list, nest | map('sum') | list, nest | map(attribute=0, default=9) | list
ls | map('nope') | list
el | map('nope') | list
l | map | list
users | selectattr('tags') | map(attribute='name') | list, users | selectattr('age', 'gt', 26) | map(attribute='name') | list, users | rejectattr('age', 'equalto', 30) | map(attribute='name') | list, users | selectattr('address') | list | length, users | selectattr('address', 'defined') | list | length
users | selectattr | list
users | selectattr('address.city', 'defined') | list
users | selectattr('age', 'nope') | list
l | select('odd') | list, l | reject('odd') | list, mix | select | list, mix | reject | list, l | select('in', [1, 2]) | list, mix | select('string') | list, mix | select('none') | list, l | select('>', 1) | list
l | join, l | join(', '), users | join(', ', attribute='name'), s | join('-'), d | join(','), mix | join('|'), el | join
5 | join
l | sum, users | sum(attribute='age'), l | sum(start=10), [0.1, 0.2] | sum, [[1], [2]] | sum(start=[]), el | sum
ls | sum
l | min, l | max, ls | min, ls | max, ls | max(case_sensitive=true), users | max(attribute='age'), el | min is undefined, 'bca' | max
mix | min
[1, 2, 1, 3, 2] | unique | list, ['a', 'A', 'b'] | unique | list, ['a', 'A'] | unique(true) | list, users | unique(attribute='age') | map(attribute='name') | list, [1, 1.0, true] | unique | list
nest | unique | list
users | groupby('age'), users | groupby('age') | map('first') | list, users | groupby('name') | map(attribute='grouper') | list, users | groupby('address.city', default='none') | map(attribute='list') | map('length') | list, ['a', 'B', 'A'] | map('list') | list
l | batch(2) | list, [1, 2, 3, 4, 5] | batch(3, 'x') | list, [1, 2, 3, 4, 5] | slice(3) | list, [1, 2, 3, 4, 5, 6, 7] | slice(3, 'x') | list, el | batch(2) | list
d | dictsort, d.c | dictsort, {'b': 1, 'A': 2, 'a': 0} | dictsort, {'b': 1, 'A': 2} | dictsort(true), {'b': 1, 'a': 2} | dictsort(by='value'), {'b': 1, 'a': 2} | dictsort(reverse=true)
d | dictsort(by='value')
d | dictsort(by='x')
l | dictsort
d | items | list, ed | items | list, undefined_thing | items | list
l | items | list
undefined_thing | default('x'), none | default('x'), none | default('x', true), '' | default('x', boolean=true), undefined_thing | default, undefined_thing | d(5), s | d('x'), d.nope | default({})
'42' | int, '42.9' | int, 'x' | int, 'x' | int(5), 3.99 | int, -3.99 | int, '0x1F' | int(base=16), '0b11' | int(base=2), ' 42 ' | int, '1_000' | int, 'ff' | int(0, 16), '0x1F' | int(0, 0), none | int, [] | int(3), true | int, '-7' | int, '+7' | int, '1e3' | int, '' | int, '--1' | int, '0x' | int, '12' | int(base=3)
'3.5' | float, 'x' | float, 'x' | float(1.5), 3 | float, true | float, '1e3' | float, ' 2.5 ' | float, none | float, '1_0.5' | float, 'nan' | float, 'inf' | float, '0x10' | float, '-inf' | float, '1.' | float, '.5' | float, '.' | float
undefined_thing | int
undefined_thing | float
2.5 | round, 3.5 | round, 2.675 | round(2), 42.55 | round(1, 'floor'), 42.51 | round(1, 'ceil'), 42 | round, 1234 | round(-2), 1250 | round(-2), 1350 | round(-2), -2.5 | round, 1234.5 | round(-2), 1e20 | round, 0.5 | round, 7 | round(1, 'ceil'), true | round, -1250 | round(-2)
'x' | round
1 | round(1, 'up')
-5 | abs, (-5) | abs, -5.5 | abs, true | abs
'x' | abs
i | string + 'x', none | string, [1] | string, 1.0 | string
(html | e) ~ '|' ~ (html | escape) ~ (5 | e) ~ (s | safe)
s | replace('o', '0'), s | replace('l', 'L', 1), 5 | replace(5, 6), s | replace('o', none), s | replace('', '.'), s | replace('l', '', count=2)
lines | indent, lines | indent(2, true), lines | indent('> ', true, true), 'a' | indent, '' | indent(first=true), 'a\n\nb\n' | indent(2), 'a\n\nb\n' | indent(2, blank=true), 'x' | indent(width=3, first=true)
5 | indent
s | wordcount, u | wordcount, "it's a-b c_d" | wordcount
s | center(20), 'x' | center(4), 'abc' | center(2)
'foo bar baz qux' | truncate(9), 'foo bar baz qux' | truncate(9, true), 'foo bar baz qux' | truncate(11), 'foo bar baz qux' | truncate(11, false, '...', 0), s | truncate(5, true, '', 0)
d | attr('items') is callable, d | attr('a') is defined, namespace(x=4) | attr('x'), s | attr('upper') is callable
d | tojson, users | tojson, u | tojson, u | tojson(ensure_ascii=true), d | tojson(indent=2), d | tojson(sort_keys=true), d | tojson(indent=1, sort_keys=true), d | tojson(separators=(',', ':')), el | tojson(indent=2), ed | tojson(indent=2), nest | tojson(indent=0), d | tojson(indent='--'), d | tojson(true, none), d | tojson(indent=4, separators=[';', '=']), d | tojson(indent=-1)
none | tojson, true | tojson, 1.0 | tojson, 1e22 | tojson, 'a"\\/\n\t\b\x01\x7f\u2028<' | tojson, (1, 2) | tojson, {1: 2, none: 3, true: 4, 1.5: 5} | tojson, '\x7f🌍' | tojson(ensure_ascii=true), 'inf' | float | tojson, 'nan' | float | tojson, -1 | tojson
undefined_thing | tojson
range(3) | tojson
l | map('string') | tojson
{(1, 2): 3} | tojson
{1: 2, 'a': 3} | tojson(sort_keys=true)
namespace(a=1) | tojson
s is string, i is string, i is number, t is number, t is integer, t is boolean, f is float, f is number, i is integer, n is none, n is not none, s is none
l is iterable, s is iterable, i is iterable, d is iterable, n is iterable, undefined_thing is iterable, d.items() is iterable, l is sequence, s is sequence, d is sequence, i is sequence, d.items() is sequence, range(2) is sequence, undefined_thing is sequence
d is mapping, l is mapping, namespace() is mapping, undefined_thing is mapping
t is true, i is true, no is false, z is false, t is not false, 1 is true
2 is even, 3 is odd, 2 is odd, 3 is not even, 6 is divisibleby 3, 6 is divisibleby(4), 2.0 is even
'a' is even
1 is eq 1, 1 is equalto 1.0, 1 is ne 2, 1 is lt 2, 2 is le 2, 3 is gt 2, 3 is ge(4), 1 is lessthan 2, 1 is greaterthan 2, 2 is in [1, 2], 'a' is in 'abc', 9 is not in l, 1 is sameas 1, n is sameas none, 1 is sameas true
'a' is lt 1
'ABC' is upper, 'abc' is lower, 'aBc' is lower, '1' is upper
range is callable, s.upper is callable, i is callable, undefined_thing is callable
'upper' is filter, 'nope' is filter, 'even' is test, 'nope' is test
s is defined and s is string, not s is defined or i is none, s is not defined or true
i is nope
i | nope
i if true else (i | nope)
i if true else (i is nope)
s.upper().lower().title(), (s ~ '!').upper(), [1, 2][0], {'a': 1}['a'], 'abc'[1], (1, 2, 3)[1:], -l[0], -l[0] | abs, (1, 2)[0]
s | upper ~ s | lower, 1 + 2 | string | length, '-' * 5 + '|' | upper
1 if s else 2, [1 if z else 2, 3], {'a': 1 if t else 2}
l | sort | first ~ l | max
( 1 ), ( ), (1, ), ((1, 2), 3)
[1, 2, ], {'a': 1, }, [
  1,
  2
]
1 2
1 +
[1
(1
{'a'}
'unclosed
a.
a..b
1..2
| upper
s |
s | upper(
s.split(,)
@
s is
f(a=1, 2)
f(*l, 3)
f(**d, 3)
f(**d, **d)
'a' not 'b'
a b
%s
i == = 3
'a\
b'
'%s' | format
range(3, stop=5)
d.get(key='a')
'x'.upper(1)
'x'.upper(a=1)
raise_exception('boom')
raise_exception('boom ' ~ i ~ ' ü')
raise_exception(5)
raise_exception()
strftime_now('%Y-%m-%d %H:%M:%S %j %A %b %%')
strftime_now()
big * big
l.0, l.1.x is undefined, nest.0.1
users[0].name, users[0]['name'], users[-1].address.city, users[1].address is defined, users[0]["tags"][0]
(users | first).name, (users | map(attribute='age') | list)[1:]
1 in l in nest
1 is number in [true]
'b' in ls and 'z' not in ls, not 1 in l
none is none is none
2 if 3 is odd
true and false or true, true or false and false, not true or true
1.5e3, 1E5, 0.5.x is undefined
5 is divisibleby 2 or true
[] is sequence, () is sequence, '' is string
d.c.y is none, d.c.z is none, d.c.z is undefined
[x for x in l]
lambda: 1
s . upper ( )
s["upper"](), l["index"](2)
d | length > 2 and s | length < 20
"a" ~ "b" | upper ~ "c"
-1 ** 2, -(1) ** 2, 2 * -1, 2 - -1, not -1, + 1
none ~ '', [none], {none: none}
"\u0041\x42\103", "\N", '\ud83d'
(1, 2) + ([3] | list | first, )
(true, false, none, True, False, None)
true.x is undefined, 1.bit_length()
{} or [] or () or '' or 0 or none
"a,b;c" | replace(",", ";") | replace(";", ":")
'x' in undefined_thing
undefined_thing in 'x'
undefined_thing | join, undefined_thing | sort, undefined_thing | reverse | list, undefined_thing | first is undefined, undefined_thing | upper, undefined_thing | trim, undefined_thing | replace('a', 'b'), undefined_thing | sum, undefined_thing | unique | list, undefined_thing | map('upper') | list, undefined_thing | wordcount
undefined_thing | round
undefined_thing | abs
undefined_thing | dictsort
undefined_thing | indent
undefined_thing == '', undefined_thing is string, [undefined_thing] == [undefined_thing]
[undefined_thing, undefined_thing] | sort | length, [undefined_thing] | max is undefined
"" if undefined_thing else "x", undefined_thing.__class__ is defined
namespace(a=1)['a'], namespace(_a=1)._a is defined, namespace(_a=1)
"foo"[10:] ~ '|', "foo"[1:1] ~ '|', []|first|default('none')
[3, 1] | sort is iterable, [1] | map('abs') is iterable
{'a': {'b': {'c': 1}}}.a.b.c, {'a': [{'b': 2}]}['a'][0]['b']
[1, [2, [3, [4]]]] | string, [[]] * 2
'abc' | list | reverse | join, 'abc' | map('upper') | join('-')
(l | length) * '=' , '=' * l | length
"%s" % "a" "b"
'' is defined, 0 is defined, none is defined
1 == '1', 1 == true, 0 == false, '' == none, [] == false
'Z' < 'a', 'é' > 'z', '' < 'a', '🌍' > '你'
1.0 == 1, 2**53 == 2**53 + 1.0, 9007199254740993 > 9007199254740992.0
'inf' | float > 1e308, ('nan' | float) == ('nan' | float), ('nan' | float) < 1
9223372036854775807 + 0, -9223372036854775807 - 1
"{:.1f}".format(0.25), "{:.0f}".format(2.5), '%.1f' % 0.35, "{:g}".format(1e10), "{:.3g}".format(1234.5), '{:,.2f}'.format(1234567.891), '{:>+8.2f}'.format(3.14159), '{:08.3f}'.format(-3.14159)
"{}".format([1, 'a']), "{}".format(none), "{}".format(1.0), '{:d}'.format(true)
'{:d}'.format('a')
'{'.format()
'}'.format()
""".strip("\n")

BLOCKS = r"""
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}:{{ x }} {% endfor %}
{% for x in l %}{{ loop.previtem }}-{{ x }}-{{ loop.nextitem }};{% endfor %}
{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}
{% for x in l %}{{ loop.previtem.y }}{% endfor %}
{% for x in l %}{{ loop }}{% endfor %}
{% for x in l %}{{ loop.nope }}{% endfor %}
{% for x in el %}x{% else %}none{% endfor %}{% for x in l %}y{% else %}none{% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}no{% endfor %}
{% for x in l if x > 9 %}{{ x }}{% else %}no{% endfor %}
{% for x in l if x > 1 %}{{ loop.last }}{{ loop.revindex }}{% endfor %}
{% set ns = namespace(n=0) %}{% for x in [1,2,3,4] if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ x }}{% endfor %}
{% set ns = namespace(n=0) %}{% for x in [1,2,3,4] if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ x }}{{ loop.last }}{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}
{% for a, b in nest %}{{ a }}{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}
{% for a in 5 %}{% endfor %}
{% for a in none %}{% endfor %}
{% for a in undefined_thing %}x{% else %}e{% endfor %}
{% for c in u %}[{{ c }}]{% endfor %}
{% for x in 1, 2 %}{{ x }}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}
{% for x in l %}{% break %}{% else %}else{% endfor %}|
{% break %}
{% for x in l %}{% endfor %}{% continue %}
{% for x in nest %}{{ loop.index }}{% for y in x %}{{ loop.index }}{{ loop.length }}{% endfor %}{{ loop.index }}{% endfor %}
{% for item in [{'n': 1, 'c': [{'n': 2, 'c': []}]}, {'n': 3, 'c': []}] recursive %}{{ item.n }}{{ loop.depth }}{% if item.c %}({{ loop(item.c) }}){% endif %}{% endfor %}
{% for x in l %}{{ loop(x) }}{% endfor %}
{% set x = 1 %}{% for y in l %}{{ x }}{% set x = y %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% for x in l %}{% if loop.first %}{% set seen = 1 %}{% endif %}{{ seen }}{% endfor %}
{% if false %}{% set s = 1 %}{% endif %}{{ s }}
{{ s }}{% set s = 'changed' %}{{ s }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}
{% set a, b = [1] %}
{% set a, b = [1, 2, 3] %}
{% set a = 1, 2 %}{{ a }}
{% set ns = namespace(x=1) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}
{% set ns = {} %}{% set ns.x = 1 %}
{% set nope.x = 1 %}
{% set x %}a{{ i }}b{% endset %}[{{ x }}]
{% set x | upper | replace('A', 'z') %}aBc{% endset %}{{ x }}
{% set x %}{% set y = 5 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}
{% set true = 1 %}
{% set 5 = 1 %}
{% set x.y.z = 1 %}
{% macro m(a, b=2, *c) %}{% endmacro %}
{% macro m(a, b='B') %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=1, a=2) }}{{ m() }}{{ m(*[7, 8]) }}{{ m(**{'a': 9}) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}
{% macro m(a) %}{{ a is defined }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m() }}
{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(5) }}
{% macro m() %}{{ s }}{% set s = 1 %}{% endmacro %}{{ m() }}{{ s }}
{% macro m() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ m() }}
{% macro fact(n) %}{{ 1 if n < 2 else n * (fact(n - 1) | int) }}{% endmacro %}{{ fact(10) }}
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body {{ i }}{% endcall %}
{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b=5) m() %}{{ a }}{{ b }}{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}body{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m(caller) %}{{ caller }}{% endmacro %}{{ m(1) }}
{% macro m(x) %}{% for i in range(x) %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) m(3) %}{{ i }},{% endcall %}
{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}
{{ m() }}{% macro m() %}x{% endmacro %}
{% macro m() %} a {% endmacro %}{{ m() | trim }}{{ m() ~ 'x' }}{{ m().upper() }}{{ m is callable }}{{ m.name }}
{% macro m() %}{% if true %}{% endif %}{% endmacro %}[{{ m() }}]{{ m() is string }}
{% macro m() %}{{ m }}{% endmacro %}{{ m is string }}
{% macro m(a) %}{% break %}{% endmacro %}
{% call range(3) %}{% endcall %}
{% call s %}{% endcall %}
{% with a = 1, b = i %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}{{ a is defined }}{{ c is defined }}
{% with %}{% set x = 1 %}{{ x }}{% endwith %}{{ x is defined }}
{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}
{% filter upper %}abc{{ s }}{% endfilter %}{% filter replace('a', 'b') | title %}aXa{% endfilter %}
{% filter indent(2) | nope %}x{% endfilter %}
{% filter upper %}{% set q = 1 %}{% endfilter %}{{ q }}
{% generation %}abc{{ i }}{% endgeneration %}|{% generation %}{% set g = 1 %}{% endgeneration %}{{ g is defined }}
{% for x in l %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}
{% print i, s %}|{% print %}
{% raw %}{{ x }} {% y %} {# z #}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  |
  {% raw %}
 x
  {% endraw %}
 y
{# comment #}a{#- c -#}  b  {#- d #} e
{# multi
line #}
x
{% if i == 7 %}seven{% elif i == 8 %}eight{% else %}other{% endif %}
{% if z %}a{% elif n %}b{% elif e %}c{% else %}d{% endif %}
{% if l and d %}y{% endif %}{% if undefined_thing %}y{% endif %}{% if el %}y{% else %}n{% endif %}
{% if 1 if z else 2 %}x{% endif %}
{% if i, z %}tuple{% endif %}
{% if %}x{% endif %}
{% if i %}x
{% for x in l %}x
{% endif %}
{% else %}
{% if i %}{% else %}{% else %}{% endif %}
{% if i %}{% endfor %}
{% nope %}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{% do l.append(1) %}
{{ }}
{% %}
{{ i
{% set x = 1
{# unclosed
{% raw %}x
{{ '}}' }}{{ "%}" }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a':{}} }}
{{ i -}}   x   {{- i }}  y  {%- if i -%}  z  {%- endif -%}  w
   {% if i %}
  a
   {% endif %}
b
   {%+ if i %}
  a
   {% endif +%}
b
 x {% if i %}
a
{% endif %} y
{{ i }}
{{ i }}
	{# tabbed #}
z
a {# mid #} b
a{% set x = 1 %}
b
  {{- i -}}
  b
  {% set x = 1 -%}
  c
a

{%- set x = 1 %}

b
{% for x in l %}
  {{ x }}
{% endfor %}
{% for x in l -%}
  {{ x }}
{%- endfor %}
{{ i }}{# c #}{% if true %}{% endif %}
{% set x = [] %}{% set x = x + [1] %}{% set x = x + [2] %}{{ x }}
{% set cy = cycler('a', 'b') %}{{ cy.next() }}{{ cy.current }}{{ cy.next() }}{{ cy.next() }}{{ cy.reset() }}{{ cy.current }}
{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}
{% for g in users | groupby('age') %}{{ g.grouper }}:{% for x in g.list %}{{ x.name }},{% endfor %}{% endfor %}
{% for age, list in users | groupby('age') %}{{ age }}:{{ list | length }} {% endfor %}
{% set g = l | map('string') %}{{ g | list }}{{ g | list }}
{% set g = l | select('odd') %}{% if g %}T{% endif %}{% for x in g %}{{ x }}{{ loop.last }}{{ loop.length }}{% endfor %}
{% for x in l | reverse %}{{ x }}{{ loop.index }}{{ loop.revindex }}{% endfor %}
{% for x in [1, 2, 3][::-1] %}{{ x }}{% endfor %}{% for i in range(3) | reverse %}{{ i }}{% endfor %}
{% set ns = namespace(found=false) %}{% for x in l %}{% if x == 1 %}{% set ns.found = true %}{% break %}{% endif %}{% endfor %}{{ ns.found }}
{% for x in l %}{% set loop = 5 %}{{ loop }}{% endfor %}
{% set loop = 3 %}{{ loop }}{% for x in [1] %}{{ loop.index }}{% endfor %}{{ loop }}
{{ loop is defined }}{% for x in [1] %}{{ loop is defined }}{% endfor %}
{% for x in l %}{{ x | nope }}{% endfor %}
{% if false %}{{ x | nope }}{% endif %}ok
{% if true %}{{ i | nope }}{% endif %}ok
{% if false %}{% for x in el %}{{ x | nope }}{% endfor %}{% endif %}ok
{% set x = i if i is defined else none %}{{ x }}
{% if s is string and s is not none and 'o' in s %}{{ s[:5] }}{% endif %}
{%- if i -%}a{%- endif -%} {{- 'b' -}} {%- if z -%}c{%- endif %} d
{% set text = "a" %}{% set text = text ~ "b" %}{% set keep = text %}{% set text = text ~ "c" %}{% set fork = keep ~ "d" %}{{ text }}{{ keep }}{{ fork }}
{% set m = namespace(t='') %}{% for x in range(50) %}{% set m.t = m.t + 'ab' %}{% endfor %}{{ m.t | length }}{{ m.t[-3:] }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% macro outer() %}{% macro inner() %}I{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}{{ inner is defined }}
{% for i in range(2) %}{% for i in range(2) %}{{ i }}{% endfor %}{{ i }}{% endfor %}{{ i }}
{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}
{% for n in range(3) %}{% filter upper %}a{{ n }}{% endfilter %}{% endfor %}
{{ [1, 2] | tojson }}{{ {'a': "<b>'"} | tojson }}
{{ dict(a=1) | tojson(indent=2) }}
{% set x = {'a': 1, **{'b': 2}} %}
{% set f = '%s'.__mod__ %}{{ f }}
{{ ''.join(['a', 'b']) }}{{ 'a'.__add__('b') }}
{{ range.__class__ }}|{{ (1).__class__.__base__ }}
{{ namespace.__init__ }}|{{ caller }}
a
{{- "b" }}

{{ "c" -}}

d
{%- for x in l %}  {{ x }}  {%- endfor %}
{{-1}}{{- 1}}{{+1}}{{ -1 }}
{%- set x = 1 -%}{%-if x-%}y{%-endif-%}
{{ "a" if x is defined and x else "b" }}
{% set 变量 = 1 %}{{ 变量 + 1 }}{{ {'键': 2}.键 }}
{{ i|string|length }}{{i+1}}{{i-1}}{{i*2}}{{i%2}}{{i~1}}{{[i]}}{{i>=7}}{{i<=7}}{{i!=7}}
{% for x in l: %}{{ x }}{% endfor %}
""".strip("\n")


def expressions():
    """One template an expression; a line that continues in the next begins with no operator."""
    joined, part = [], ""
    for line in EXPRESSIONS.split("\n"):
        part = part + "\n" + line if part else line
        if part.count("[") > part.count("]") and line.endswith(("[", ",")):
            continue
        if part == "'a\\":
            continue
        joined.append(part)
        part = ""
    return ["{{ " + e + " }}" for e in joined]


def blocks():
    """Templates of several lines are joined with what follows as well, to meet its white space."""
    lines = BLOCKS.split("\n")
    yield from lines
    for n in (2, 3, 4, 6):
        for i in range(0, len(lines) - n, n - 1):
            yield "\n".join(lines[i:i + n]) + "\n" * (i % 3)


class Generator:
    """Random expressions and statements: mostly sound, sometimes ill-typed.

    `set` takes names that the context does not have: where a name of the context is assigned in a
    block and was read before only in blocks inside of it, Jinja's compiler makes it undefined
    there; Starling shows the context's value. Powers of negative numbers that are complex in
    Python are errors here.
    """

    def __init__(self, rng):
        self.rng = rng

    def pick(self, *options):
        return self.rng.choice(options)

    def name(self):
        return self.pick(*CONTEXT, "x", "y") if self.rng.random() < 0.95 else "undefined_thing"

    def text(self, depth):
        r = self.rng.random()
        if depth <= 0 or r < 0.3:
            return self.pick("s", "u", "w", "e", "q", "lines", "path", "'a'", "'L'", '"x y"', "''",
                             "'é🌍'", "num")
        a = self.text(depth - 1)
        return self.pick(
            f"({a} ~ {self.any(depth - 1)})", f"({a} + {self.text(depth - 1)})",
            f"{a}[{self.int(0)}:{self.int(0)}]", f"{a}[::{self.pick(-1, 2, -2)}]",
            f"{a}.{self.pick('upper', 'lower', 'title', 'strip', 'lstrip', 'capitalize')}()",
            f"{a}.replace({self.text(0)}, {self.text(0)})", f"({a} | {self.text_filter()})",
            f"({self.any(depth - 1)} | string)", f"({self.list(depth - 1)} | join({self.text(0)}))",
            f"({self.any(depth - 1)} | tojson)", f"({a} * {self.int(0)})", f"{a}.strip({self.text(0)})",
            f"'%s|%r' % ({a}, {self.any(depth - 1)})", f"'{{}} {{:>4}}'.format({a}, {self.int(0)})")

    def text_filter(self):
        return self.pick("upper", "lower", "title", "capitalize", "trim", "indent",
                         "replace('l', 'LL')", "truncate(5)", "center(9)", "first", "last",
                         "reverse", "default('x', true)", "indent(2, true, true)", "length | string")

    def int(self, depth):
        if depth <= 0 or self.rng.random() < 0.3:
            return self.pick("i", "z", "neg", "1", "2", "-1", "3", "t", "10", "5")
        a = self.int(depth - 1)
        return self.pick(
            f"({a} {self.pick('+', '-', '*', '//', '%')} {self.int(depth - 1)})",
            f"({self.list(depth - 1)} | length)", f"({self.text(depth - 1)} | length)",
            f"({a} | abs)", f"{self.text(depth - 1)}.find({self.text(0)})", f"(-{a})",
            f"({self.text(depth - 1)} | int)", f"({a} | round | int)",
            f"{self.text(depth - 1)}.count({self.text(0)})")

    def number(self, depth):
        a = self.pick("f", "third", "tiny", "huge", "1.5", "-0.25", "2.0", "1e3", self.int(depth - 1))
        if depth <= 0 or self.rng.random() < 0.4:
            return a
        b = self.number(depth - 1)
        return self.pick(f"({a} + {b})", f"({a} - {b})", f"({a} * {b})", f"({a} / {b})",
                         f"({a} // {b})", f"({a} % {b})", f"({a} | round({self.pick(0, 1, 2, 3)}))",
                         f"({a} | float)", f"({a} ** {self.pick(2, 3, -1)})")

    def list(self, depth):
        if depth <= 0 or self.rng.random() < 0.3:
            return self.pick("l", "ls", "el", "mix", "nest", "[1, 2, 3]", "(1, 'a')", "users",
                             "range(4)", "d", "s")
        a = self.list(depth - 1)
        return self.pick(
            f"({a} | list)", f"({a} | sort)", f"({a} | reverse | list)", f"{a}[{self.int(0)}:]",
            f"({a} | list + {self.list(depth - 1)} | list)", f"({a} | unique | list)",
            f"({a} | map('string') | list)", f"({a} | select('{self.test()}') | list)",
            f"({a} | reject('{self.test()}') | list)", f"[{self.any(depth - 1)}, {self.any(depth - 1)}]",
            f"{self.text(depth - 1)}.split({self.pick('', self.text(0))})", f"({a} | batch(2) | list)",
            f"({a} | map('{self.pick('upper', 'length', 'first', 'int', 'abs')}') | list)",
            f"(d | dictsort)", "(d.items() | list)", "users | map(attribute='age') | list",
            f"({a} | slice(2) | list)", f"{self.text(depth - 1)}.splitlines()")

    def test(self):
        return self.pick("string", "number", "none", "odd", "even", "defined", "mapping",
                         "iterable", "sequence", "boolean", "true", "integer", "float", "upper")

    def bool(self, depth):
        if depth <= 0:
            return self.pick("t", "no", "true", "false", self.name())
        a, b = self.any(depth - 1), self.any(depth - 1)
        return self.pick(f"({a} {self.pick('==', '!=')} {b})", f"({a} is {self.test()})",
                         f"({a} is not {self.test()})", f"({self.number(depth - 1)} < {self.number(depth - 1)})",
                         f"({self.text(depth - 1)} {self.pick('<', '<=', '>', '>=')} {self.text(depth - 1)})",
                         f"({a} {self.pick('in', 'not in')} {self.list(depth - 1)})", f"(not {a})",
                         f"({a} {self.pick('and', 'or')} {b})", f"({a} {self.pick('<', '>=')} {b})",
                         f"{self.text(depth - 1)}.{self.pick('startswith', 'endswith')}({self.text(0)})",
                         f"({self.int(0)} < {self.int(0)} <= {self.int(0)})")

    def any(self, depth):
        kind = self.rng.random()
        if kind < 0.06:
            return self.name()
        if kind < 0.14 and depth > 0:
            return (f"({self.any(depth - 1)} if {self.bool(depth - 1)}"
                    f"{' else ' + self.any(depth - 1) if self.rng.random() < 0.8 else ''})")
        if kind < 0.2 and depth > 0:
            return f"{{'a': {self.any(depth - 1)}, {self.text(0)}: {self.any(depth - 1)}}}"
        if kind < 0.24 and depth > 0:
            return f"({self.any(depth - 1)} | default({self.any(depth - 1)}))"
        if kind < 0.28 and depth > 0:
            return f"{self.list(depth - 1)}[{self.any(0)}]"
        return self.pick(self.text, self.int, self.number, self.list, self.bool)(depth)

    def space(self):
        return self.pick("", " ", "\n", "  ", "\n  ", "x", "x\n", " \n\n ")

    def tag(self, inside):
        return f"{{%{self.pick('', '-', '', '+')} {inside} {self.pick('', '-', '', '+')}%}}"

    def body(self, depth):
        parts = []
        for _ in range(self.rng.randint(1, 3)):
            parts += [self.space(), self.statement(depth - 1), self.space()]
        return "".join(parts)

    def statement(self, depth):
        if depth <= 0 or self.rng.random() < 0.4:
            return f"{{{{{self.pick('', '-')} {self.any(1)} {self.pick('', '-')}}}}}"
        r = self.rng.random()
        if r < 0.25:
            return (self.tag(f"if {self.bool(1)}") + self.body(depth)
                    + (self.tag("else") + self.body(depth) if self.rng.random() < 0.5 else "")
                    + self.tag("endif"))
        if r < 0.5:
            inner = self.pick("", "{{ loop.index }}", "{{ loop.last }}", "{{ i }}",
                              "{% if loop.index > 2 %}{% break %}{% endif %}",
                              "{% if loop.first %}{% continue %}{% endif %}", "{{ loop.length }}")
            test = f" if {self.bool(1)}" if self.rng.random() < 0.3 else ""
            return (self.tag(f"for {self.pick('i', 'x', 's')} in {self.list(1)}{test}") + inner
                    + self.body(depth) + self.tag("endfor"))
        if r < 0.7:
            return self.tag(f"set {self.pick('x', 'y')} = {self.any(2)}")
        if r < 0.78:
            return self.tag("set x") + self.body(depth) + self.tag("endset") + "{{ x }}"
        if r < 0.86:
            return (self.tag("macro m(a, s='S')") + "{{ a }}" + self.body(depth) + self.tag("endmacro")
                    + f"{{{{ m({self.any(1)}) }}}}{{{{ m() }}}}")
        if r < 0.92:
            return self.tag("filter upper") + self.body(depth) + self.tag("endfilter")
        return f"{{#{self.pick('', '-')} note {self.pick('', '-')}#}}"

    def template(self):
        if self.rng.random() < 0.6:
            return f"{{{{ {self.any(3)} }}}}"
        return self.body(3)
