#!/usr/bin/env python3
"""Make data/facts.csv: the project's own true and false statements.

Every statement comes from a *square*: two facts of one template whose objects may be exchanged.

    The capital of France is Paris.     true        The capital of France is Bangkok.   false
    The capital of Thailand is Bangkok. true        The capital of Thailand is Paris.   false

So in every square, and with it in every template and topic, half of the statements are true, and
each subject and each object stands once in a true and once in a false statement. Word by word the
two classes are the same text: length, first word, last word and any sum of word weights carry no
label. A probe that reads truth from this set has to combine subject and object.

Statements of a square share words, so they belong on one side of a train/test split. The column
`group` names the square; split by it (whole groups): bag-of-words probes then score exactly one half.
Split statement by statement, a probe meets in the test half the twin, with the opposite label, of
what it learned by heart, and falls below chance (bag of words: 0.07).

The facts are written by hand below, a square a line, so that the false statements can be read off
as easily as the true ones. Chosen to be old, undisputed and singular: no records, no populations,
no contested capitals, no first inventors, and in the animals no pair (a bird as a reptile, a
whale as a fish) that cladistics could argue for.

    python3 scripts/make_facts.py            write data/facts.csv
    python3 scripts/make_facts.py --check    exit 1 unless the file is what would be written

Columns: id, statement, label (1 true, 0 false), topic, template, group. The order of the rows is a
fixed shuffle, so that any leading part of the file mixes topics and labels.
"""

import argparse
import csv
import hashlib
import io
import pathlib
import sys
from collections import Counter

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "facts.csv"

# topic -> template -> squares "subject: object | subject: object".
# `{s}` and `{o}` in the template take subject and object as they stand; the first letter of the
# statement is then made a capital.
FACTS = {
    "capitals": {
        "The capital of {s} is {o}.": """
            France: Paris | Thailand: Bangkok
            Japan: Tokyo | Peru: Lima
            Italy: Rome | Norway: Oslo
            Spain: Madrid | Kenya: Nairobi
            Germany: Berlin | Vietnam: Hanoi
            Russia: Moscow | Cuba: Havana
            Egypt: Cairo | Finland: Helsinki
            Greece: Athens | Canada: Ottawa
            Portugal: Lisbon | Iran: Tehran
            Austria: Vienna | Chile: Santiago
            Poland: Warsaw | China: Beijing
            Hungary: Budapest | Iraq: Baghdad
            Sweden: Stockholm | Turkey: Ankara
            Denmark: Copenhagen | Ethiopia: Addis Ababa
            Ireland: Dublin | India: New Delhi
            Belgium: Brussels | Argentina: Buenos Aires
            Australia: Canberra | Bulgaria: Sofia
            Venezuela: Caracas | Ukraine: Kyiv
            Romania: Bucharest | Senegal: Dakar
            Croatia: Zagreb | Iceland: Reykjavik
        """,
    },
    "elements": {
        "The chemical symbol for {s} is {o}.": """
            gold: Au | oxygen: O
            silver: Ag | hydrogen: H
            iron: Fe | helium: He
            copper: Cu | nitrogen: N
            lead: Pb | calcium: Ca
            tin: Sn | carbon: C
            sodium: Na | zinc: Zn
            potassium: K | chlorine: Cl
            mercury: Hg | magnesium: Mg
            tungsten: W | neon: Ne
        """,
        "The atomic number of {s} is {o}.": """
            hydrogen: 1 | oxygen: 8
            helium: 2 | iron: 26
            lithium: 3 | sodium: 11
            carbon: 6 | gold: 79
            nitrogen: 7 | uranium: 92
            neon: 10 | copper: 29
        """,
        "At room temperature, pure {s} is a {o}.": """
            mercury: liquid | iron: solid
            bromine: liquid | helium: gas
            copper: solid | neon: gas
            gold: solid | oxygen: gas
        """,
    },
    "numbers": {
        "{s} equals {o}.": """
            two plus three: five | six plus seven: thirteen
            four plus four: eight | nine plus five: fourteen
            one plus six: seven | eight plus nine: seventeen
            three plus six: nine | seven plus eight: fifteen
            five plus one: six | ten plus two: twelve
            six plus ten: sixteen | two plus two: four
            two times five: ten | three times seven: twenty-one
            four times six: twenty-four | three times six: eighteen
            five times five: twenty-five | four times three: twelve
            six times six: thirty-six | two times seven: fourteen
            eight times five: forty | ten times three: thirty
            nine times nine: eighty-one | seven times four: twenty-eight
        """,
        "The number {s} is {o}.": """
            three: odd | eight: even
            seven: odd | twenty: even
            eleven: odd | six: even
            twenty-five: odd | fourteen: even
        """,
        "{s} has {o} sides.": """
            a triangle: three | a hexagon: six
            a square: four | an octagon: eight
            a pentagon: five | a decagon: ten
            a heptagon: seven | a dodecagon: twelve
        """,
    },
    "animals": {
        "The {s} is a kind of {o}.": """
            salmon: fish | ant: insect
            trout: fish | beetle: insect
            tuna: fish | butterfly: insect
            shark: fish | mosquito: insect
            blue whale: mammal | penguin: bird
            bat: mammal | owl: bird
            dolphin: mammal | crocodile: reptile
            elephant: mammal | cobra: reptile
            tiger: mammal | toad: amphibian
            ostrich: bird | frog: amphibian
            eagle: bird | salamander: amphibian
            tortoise: reptile | newt: amphibian
        """,
        "A young {s} is called a {o}.": """
            dog: puppy | horse: foal
            cat: kitten | cow: calf
            sheep: lamb | kangaroo: joey
            goat: kid | duck: duckling
            bear: cub | goose: gosling
            deer: fawn | pig: piglet
        """,
        "{s} have {o} legs.": """
            spiders: eight | cows: four
            ants: six | chickens: two
        """,
    },
    "places": {
        "{s} is a country in {o}.": """
            Brazil: South America | Kenya: Africa
            Japan: Asia | France: Europe
            Canada: North America | Nigeria: Africa
            Peru: South America | Poland: Europe
            India: Asia | Ghana: Africa
            Mexico: North America | Sweden: Europe
            Vietnam: Asia | Argentina: South America
            Morocco: Africa | Thailand: Asia
        """,
        "The river {s} flows through {o}.": """
            Thames: London | Seine: Paris
            Tiber: Rome | Danube: Vienna
            Nile: Cairo | Vistula: Warsaw
            Liffey: Dublin | Spree: Berlin
            Vltava: Prague | Hudson: New York
        """,
        "{s} is in {o}.": """
            Mount Fuji: Japan | Mount Kilimanjaro: Tanzania
            Mount Etna: Italy | Ben Nevis: Scotland
            the Eiffel Tower: France | the Taj Mahal: India
            the Colosseum: Italy | the Great Pyramid of Giza: Egypt
            the Statue of Liberty: the United States | the Kremlin: Russia
            the Parthenon: Greece | the Brandenburg Gate: Germany
            the Sydney Opera House: Australia | Machu Picchu: Peru
        """,
    },
    "arts": {
        "{s} was written by {o}.": """
            Hamlet: William Shakespeare | War and Peace: Leo Tolstoy
            Don Quixote: Miguel de Cervantes | Pride and Prejudice: Jane Austen
            Oliver Twist: Charles Dickens | The Divine Comedy: Dante Alighieri
            Faust: Johann Wolfgang von Goethe | Moby-Dick: Herman Melville
            Animal Farm: George Orwell | Frankenstein: Mary Shelley
            Crime and Punishment: Fyodor Dostoevsky | The Hobbit: J. R. R. Tolkien
            The Old Man and the Sea: Ernest Hemingway | Dracula: Bram Stoker
            Madame Bovary: Gustave Flaubert | Paradise Lost: John Milton
            The Metamorphosis: Franz Kafka | Treasure Island: Robert Louis Stevenson
            The Canterbury Tales: Geoffrey Chaucer | Jane Eyre: Charlotte Bronte
        """,
        "{s} was painted by {o}.": """
            the Mona Lisa: Leonardo da Vinci | The Starry Night: Vincent van Gogh
            Guernica: Pablo Picasso | The Night Watch: Rembrandt
            The Birth of Venus: Sandro Botticelli | The Persistence of Memory: Salvador Dali
            Girl with a Pearl Earring: Johannes Vermeer | American Gothic: Grant Wood
        """,
        "{s} was composed by {o}.": """
            The Four Seasons: Antonio Vivaldi | The Magic Flute: Wolfgang Amadeus Mozart
            Swan Lake: Pyotr Tchaikovsky | the Moonlight Sonata: Ludwig van Beethoven
            Carmen: Georges Bizet | Rhapsody in Blue: George Gershwin
            The Rite of Spring: Igor Stravinsky | La Traviata: Giuseppe Verdi
            Water Music: George Frideric Handel | Madama Butterfly: Giacomo Puccini
            Finlandia: Jean Sibelius | The Barber of Seville: Gioachino Rossini
        """,
    },
    "science": {
        "The SI unit of {s} is the {o}.": """
            force: newton | frequency: hertz
            energy: joule | electric current: ampere
            power: watt | mass: kilogram
            pressure: pascal | electric charge: coulomb
            electrical resistance: ohm | length: metre
            time: second | temperature: kelvin
        """,
        "{s} measures {o}.": """
            a thermometer: temperature | a speedometer: speed
            a barometer: air pressure | a ruler: length
            a clock: time | an ammeter: electric current
            a seismometer: ground motion | a hygrometer: humidity
        """,
        "{s} is the {o} planet from the Sun.": """
            Mercury: first | Jupiter: fifth
            Venus: second | Saturn: sixth
            Earth: third | Uranus: seventh
            Mars: fourth | Neptune: eighth
        """,
        "The study of {s} is called {o}.": """
            plants: botany | the weather: meteorology
            animals: zoology | stars: astronomy
            insects: entomology | cells: cytology
            fossils: paleontology | the mind: psychology
            earthquakes: seismology | birds: ornithology
            fungi: mycology | human societies: sociology
        """,
    },
    "language": {
        "The opposite of {s} is {o}.": """
            hot: cold | tall: short
            big: small | early: late
            rich: poor | open: closed
            fast: slow | full: empty
            strong: weak | wet: dry
            happy: sad | thick: thin
            noisy: quiet | near: far
        """,
        "The plural of {s} is {o}.": """
            mouse: mice | child: children
            foot: feet | ox: oxen
            tooth: teeth | man: men
            goose: geese | leaf: leaves
            woman: women | knife: knives
        """,
        "The past tense of {s} is {o}.": """
            go: went | eat: ate
            see: saw | run: ran
            write: wrote | buy: bought
            sing: sang | fly: flew
        """,
        "The Spanish word for {s} is {o}.": """
            dog: perro | house: casa
            water: agua | book: libro
            sun: sol | cat: gato
            bread: pan | moon: luna
        """,
    },
    "time": {
        "The month after {s} is {o}.": """
            January: February | June: July
            February: March | September: October
            March: April | August: September
            April: May | November: December
            May: June | October: November
            July: August | December: January
        """,
        "The day after {s} is {o}.": """
            Monday: Tuesday | Thursday: Friday
            Tuesday: Wednesday | Friday: Saturday
            Wednesday: Thursday | Saturday: Sunday
        """,
        "The month of {s} has {o} days.": """
            January: thirty-one | April: thirty
            March: thirty-one | June: thirty
            July: thirty-one | September: thirty
            August: thirty-one | November: thirty
        """,
        "{s} lasts {o}.": """
            a minute: sixty seconds | a day: twenty-four hours
            an hour: sixty minutes | a week: seven days
            a year: twelve months | a millennium: ten centuries
            a decade: ten years | a century: one hundred years
        """,
        "{s} took place in {o}.": """
            the first Moon landing: 1969 | the fall of the Berlin Wall: 1989
            the storming of the Bastille: 1789 | the sinking of the Titanic: 1912
            the Battle of Hastings: 1066 | the Battle of Waterloo: 1815
        """,
    },
    "body": {
        "People {s} with their {o}.": """
            see: eyes | hear: ears
            smell: noses | chew: teeth
            breathe: lungs | taste: tongues
        """,
        "The {s} is a bone in the {o}.": """
            femur: leg | humerus: arm
            tibia: leg | ulna: arm
            patella: knee | mandible: jaw
            sternum: chest | fibula: leg
            scapula: shoulder | scaphoid: wrist
        """,
        "The main job of the {s} is to {o}.": """
            heart: pump blood | bladder: store urine
            stomach: digest food | lungs: take in oxygen
            kidneys: filter the blood | teeth: chew food
            eyelids: protect the eyes | sweat glands: cool the body
        """,
        "{s} is a disease of the {o}.": """
            pneumonia: lungs | hepatitis: liver
            glaucoma: eyes | gingivitis: gums
            eczema: skin | cystitis: bladder
            gastritis: stomach | nephritis: kidneys
        """,
        "{s} treats problems of the {o}.": """
            a cardiologist: heart | a dermatologist: skin
            a dentist: teeth | a neurologist: brain
            an ophthalmologist: eyes | a podiatrist: feet
            a nephrologist: kidneys | a hepatologist: liver
        """,
    },
}


def mix(text):
    """A fixed pseudo-random key, the same under every version of Python."""
    return hashlib.sha256(text.encode()).hexdigest()


def squares(block):
    """The squares of one template: ((subject, object), (subject, object)), one per line."""
    for line in filter(None, map(str.strip, block.splitlines())):
        yield tuple(tuple(fact.strip().split(": ", 1)) for fact in line.split(" | "))


def statements():
    """All rows in file order: (id, statement, label, topic, template, group)."""
    rows = []
    for topic, templates in FACTS.items():
        square_number = 0
        for template_number, (template, block) in enumerate(templates.items(), 1):
            for (s1, o1), (s2, o2) in squares(block):
                square_number += 1
                group = f"{topic}-{square_number:02}"
                four = [(s1, o1, 1), (s2, o2, 1), (s1, o2, 0), (s2, o1, 0)]
                texts = [(template.format(s=s, o=o), label) for s, o, label in four]
                texts = [(text[0].upper() + text[1:], label) for text, label in texts]
                texts.sort(key=lambda row: mix(row[0]))
                for letter, (text, label) in zip("abcd", texts):
                    rows.append((group + letter, text, label, topic, f"{topic}-t{template_number}", group))
    rows.sort(key=lambda row: mix("order " + row[1]))
    return rows


def problems(rows):
    """What would make the set unfit (repeats, a square whose swap changes nothing, stray spaces), in words."""
    found = []
    for template, block in ((template, block) for ts in FACTS.values() for template, block in ts.items()):
        subjects = Counter(s for square in squares(block) for s, _ in square)
        found += [f"{template}: subject {s!r} twice" for s, n in subjects.items() if n > 1]
        for (s1, o1), (s2, o2) in squares(block):
            if o1 == o2:
                found.append(f"{template}: {s1} and {s2} have the same object")
    texts = Counter(" ".join(text.lower().split()) for _, text, *_ in rows)
    found += [f"twice: {text}" for text, n in texts.items() if n > 1]
    for _, text, *_ in rows:
        if text != " ".join(text.split()) or not text.endswith(".") or text.endswith("..") or not text.isascii():
            found.append(f"ill-formed: {text!r}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with data/facts.csv instead of writing it")
    arguments = parser.parse_args()

    rows = statements()
    if found := problems(rows):
        sys.exit("\n".join(found))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "statement", "label", "topic", "template", "group"])
    writer.writerows(rows)
    made = buffer.getvalue().encode()

    if arguments.check:
        if not OUT.is_file() or OUT.read_bytes() != made:
            sys.exit(f"{OUT} is not what this script makes: run it without --check")
        print(f"{OUT}: {len(rows)} statements, as made by this script")
        return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(made)
    print(f"{OUT}: {len(rows)} statements")


if __name__ == "__main__":
    main()
