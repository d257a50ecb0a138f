"""What a reader of English knows beforehand: function words, irregular forms, words that mean the same, units.

Written as plain lists so that it can be read and extended; every entry is general English, none belongs to a video.
"""


def word_set(text: str) -> frozenset[str]:
    """The words of a blank-separated list."""
    return frozenset(text.split())


STOP_WORDS = word_set(
    """a an the this that these those some any each every all both no not nor and or but if then than as of at by for
    from in into on onto off out over under up down to with within without about above after before behind below
    beside between during near next since through until till upon via per i me my mine you your yours he him his
    she her hers it its we us our ours they them their theirs who whom whose which what when where why how is am
    are was were be been being do does did done doing have has had having can could will would shall should may
    might must ought there here so too very just only also else such one ones own same other another m s t re ve
    ll d please yes oh um uh ok okay let's don't doesn't didn't isn't aren't wasn't weren't i'm it's that's
    there's you're we're they're i've o'clock while because therefore however ever never always now"""
)

AUXILIARIES = word_set(
    """is am are was were be been being do does did have has had can could will would shall should may might must
    there"""
)

PRONOUNS = word_set("it its he she they him her them his their this that these those there")

PREPOSITIONS = word_set(
    """in at on near behind beside beneath under above below between opposite inside outside along across over around
    against through into onto by to from past within towards"""
)

# Verbs and nouns that say little about what is asked; they count for less.
LIGHT_WORDS = word_set(
    """get have make take go come be do use need give put see look find thing people person must able happen today kind
    sort type part way want like let keep allow person everybody somebody anybody again stay show video film
    clip say tell speak talk mention announce call hear name there much many current usually exactly guest
    visitor student viewer passenger customer pass"""
)

# Words that point at the picture: in a question they say where to look, in speech that the picture completes it.
PICTURE_WORDS = word_set(
    """sign board screen poster panel plate card slide label tag map notice display banner caption scoreboard written
    shown printed picture chart table list calendar leaflet menu page blackboard whiteboard scoreboard placard
    sticker"""
)
# Words of a question that asks for nothing but what stands in the picture: "What text appears in the video?"
ANY_TEXT_WORDS = PICTURE_WORDS | word_set(
    "text texts word words writing letters video clip film say read appear visible"
)
POINTING_WORDS = PICTURE_WORDS | word_set("here below see read look wall door window floor")
SPEECH_WORDS = word_set("say said says tell told tells announce announced mention mentioned speak speaks")

IRREGULAR = {
    form: base
    for base, forms in {
        "arise": "arose arisen", "beat": "beaten", "become": "became", "begin": "began begun", "bend": "bent",
        "bite": "bit bitten", "blow": "blew blown", "break": "broke broken", "bring": "brought", "build": "built",
        "burn": "burnt", "buy": "bought", "catch": "caught", "child": "children", "choose": "chose chosen",
        "come": "came", "cut": "cutting", "deal": "dealt", "dig": "dug", "draw": "drew drawn", "drink": "drank drunk",
        "drive": "drove driven", "eat": "ate eaten", "fall": "fell fallen", "feed": "fed", "feel": "felt",
        "fight": "fought", "find": "found", "fly": "flew flown", "foot": "feet", "forget": "forgot forgotten",
        "freeze": "froze frozen", "get": "got gotten", "give": "gave given", "go": "went gone", "grow": "grew grown",
        "hang": "hung", "have": "has had", "hear": "heard", "hide": "hid hidden", "hold": "held", "keep": "kept",
        "know": "knew known", "lay": "laid", "lead": "led", "leave": "left", "lend": "lent", "light": "lit",
        "lose": "lost", "make": "made", "man": "men", "mean": "meant", "meet": "met", "mouse": "mice", "pay": "paid",
        "ride": "rode ridden", "ring": "rang rung", "rise": "rose risen", "run": "ran", "say": "said",
        "see": "saw seen",
        "sell": "sold", "send": "sent", "shake": "shook shaken", "shine": "shone", "shoot": "shot",
        "show": "shown showed", "sing": "sang sung", "sink": "sank sunk", "sit": "sat", "sleep": "slept",
        "speak": "spoke spoken", "spend": "spent", "stand": "stood", "steal": "stole stolen", "stick": "stuck",
        "swim": "swam swum", "take": "took taken", "teach": "taught", "tell": "told", "think": "thought",
        "throw": "threw thrown", "tooth": "teeth", "understand": "understood", "wake": "woke woken",
        "wear": "wore worn", "win": "won", "woman": "women", "write": "wrote written",
    }.items()
    for form in forms.split()
}  # fmt: skip

# Each line holds words that can stand for one another in a question and its answer.
SYNONYMS = """
cost price pay fare charge fee worth expensive
leave depart departure go
arrive arrival come reach
start begin commence open
end finish stop close
finish complete done ready
open opening
close closed shut
repair fix mend
buy purchase get
sell sale sold
rent hire lend borrow
build make construct create manufacture
design invent create plan
make made of
own belong owner
cook chef
doctor physician
shop store
car automobile vehicle
bus coach
coach trainer manager
teacher instructor lecturer professor
boss chief head director leader manager
worker employee staff
child kid children
spectator attendance audience crowd visitor fan
visitor guest
picture photo photograph image
film movie video
big large huge
small little tiny
hand submit give
wear dress
fast quick speed
speed fast limit
warm hot temperature
cold cool temperature
old age
high tall height
long length
wide width
deep depth
heavy weight weigh
happen occur take
live reside home
work job
speak talk say
mention say
complain blame criticise
burn fire
destroy ruin burn
care look
journey trip ride travel
luggage baggage suitcase bag
password code
toilet restroom lavatory bathroom
lift elevator
phone telephone call tel
call ring phone tel
email mail
address mail
allow permit may
forbid prohibit
student pupil
lesson class lecture course
exam test
test check inspect examine
meal food eat
breakfast meal
lunch meal
dinner meal supper
sea ocean
road street
city town
hole opening
need require required necessary
must required
adult grown-up
winner champion
win beat defeat victory
seat place
location place
travel play visit
present gift
teach give
host presenter
present host
mechanic repair
play match game
match game
forklift truck
late delay
""".strip()

# A general word and what it may stand for; not the other way round.
HYPONYMS = {
    "people": """passenger guest visitor spectator worker employee student pupil soldier player customer resident
    inhabitant tourist child man woman traveller participant member viewer listener citizen""",
    "animal": "dog cat horse cow sheep pig goat bird fish rabbit monkey elephant lion tiger bear wolf fox hen duck",
    "vehicle": "car bus lorry truck van train tram bicycle bike motorbike taxi coach tractor ambulance",
    "fruit": "apple pear cherry orange banana grape plum peach lemon strawberry raspberry melon",
    "vegetable": "potato carrot onion tomato cabbage bean pea leek cucumber pepper spinach",
    "drink": "water tea coffee milk juice wine beer lemonade cocoa",
    "instrument": "piano violin guitar flute drum trumpet organ cello",
    "ship": "boat ferry vessel yacht",
    "metal": "iron steel copper brass gold silver tin lead aluminium",
    "tool": "hammer saw drill knife screwdriver spade axe chisel pliers",
}

# "not running", "not open": what is said of a thing that does not do what it should.
STOPPING = word_set("stop cancel close shut block break fail suspend halt delay interrupt prevent lock refuse")

# Verbs whose subject is the reason for what follows.
CAUSING = word_set("""cause stop block delay prevent force destroy damage break close flood cut halt interrupt ruin
    cancel trigger""")

# Words that sound alike, of which a speech recogniser may write the wrong one.
HOMOPHONES = """
wear where
weather whether
flour flower
week weak
hole whole
mail male
sea see
sun son
write right
red read
piece peace
plain plane
fare fair
steel steal
sale sail
tale tail
board bored
stairs stares
weight wait
blue blew
new knew
hour our
hear here
meat meet
pair pear
rain reign
road rode
sell cell
cent scent
scene seen
tide tied
wood would
bee be
deer dear
hair hare
heel heal
maid made
main mane
pole poll
route root
steak stake
waste waist
brake break
key quay
aisle isle
towed toad
oar ore
cereal serial
current currant
berry bury
bread bred
flea flee
knight night
medal meddle
story storey
""".strip()

# What a question calls the video itself.
VIDEO_WORDS = word_set("video film clip show programme program recording")

COLOURS = word_set(
    """red green blue yellow orange purple violet pink brown black white grey gray golden gold silver beige turquoise
    crimson scarlet navy maroon cream"""
)

WEEKDAYS = word_set(
    """monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays
    sundays mon tue tues wed thu thurs fri"""
)
MONTHS = word_set(
    """january february march april may june july august september october november december jan feb mar apr jun jul
    aug sep sept oct nov dec"""
)
DAY_PARTS = word_set(
    """noon midnight midday morning afternoon evening night tonight today tomorrow yesterday dawn dusk sunrise sunset
    weekend daily"""
)
SEASONS = word_set("spring summer autumn winter easter christmas")

TIME_UNITS = word_set("second minute hour day week month year decade centur night min sec hr h season")
LENGTH_UNITS = word_set(
    "metre meter kilometre kilometer centimetre centimeter millimetre millimeter mile foot inch yard m km cm mm"
)
WEIGHT_UNITS = word_set("gram kilogram kilo pound tonne ton ounce g kg mg t")
VOLUME_UNITS = word_set("litre liter millilitre milliliter cup spoon teaspoon tablespoon pinch bottle l ml cl")
SPEED_UNITS = word_set("knot km mile mph kmh")
HEAT_UNITS = word_set("degree ° c f celsius fahrenheit")
CURRENCIES = word_set(
    """£ $ € pound pounds dollar dollars euro euros cent cents pence penny franc francs eur usd gbp chf yen rupees
    crowns"""
)
SMALL_CURRENCIES = word_set("cent cents pence penny")

ROLES = word_set(
    """man woman boy girl lady gentleman people nurse doctor chef cook guard driver captain manager teacher professor
    student baker foreman coach goalkeeper player brother sister father mother son daughter wife husband
    neighbour neighbor colleague friend porter guide mechanic engineer artist painter king queen president mayor
    minister police policeman officer soldier farmer singer actor clerk assistant director secretary company
    team visitors guests staff everybody nobody somebody child children brigade"""
)
TITLES = word_set("mr mrs ms miss dr doctor prof professor sir lady captain nurse")

PLACE_NOUNS = word_set(
    "level floor room hall gate platform street road avenue square left right upstairs downstairs desk counter"
)
# Nouns whose instances bear a number or a letter: "platform 4", "room B12".
LABELLED = word_set(
    """platform room gate floor level line bus track page chapter channel lane door seat row number table hall terminal
    exit building box bay stop car track"""
)
